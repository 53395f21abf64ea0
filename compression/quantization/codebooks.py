"""Weights that share a few values, each layer from a codebook of its own.

| codebook | values at b bits | source |
|---|---|---|
| power_of_two | 0 and 2^(b-1) - 1 powers of two of either sign, the largest nearest to the largest weight | Miyashita et al. 2016, arXiv:1603.01025; top and rounding as in Zhou et al. 2017 (INQ), arXiv:1702.03044 |
| k_means | 2^b centroids of the weights, started evenly over their range; pruned weights keep 0 as one of them | Han et al. 2016 (Deep Compression), arXiv:1510.00149 |

No runtime here computes with codes: the artifact contains the decoded values, and runs as fast as the float model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...spaces.models.layers import layer_at
from ...spaces.policies.candidate import CodedWeight
from ...spaces.policies.policy import LayerPolicy, Policy

MAX_STEPS = 300
"""The most steps of Lloyd's algorithm, which ends earlier once no centroid moves."""

Values = Callable[[Tensor, int], Tensor]
"""A function of a weight and its bits that returns the sorted values it may take, [at most 2^bits]."""


def power_of_two(weight: Tensor, bits: int) -> Tensor:
    """See the table above."""
    largest = weight.abs().max()
    if largest == 0:
        return weight.new_zeros(1)
    top = torch.floor(torch.log2(4 * largest / 3))
    powers = torch.exp2(top - torch.arange(2 ** (bits - 1) - 1, device=weight.device))
    return torch.cat([-powers, powers.flip(0).new_zeros(1), powers.flip(0)])


def k_means(weight: Tensor, bits: int) -> Tensor:
    """See the table above."""
    flat = weight.flatten()
    held = flat[flat != 0]
    zero = flat.new_zeros(min(1, len(flat) - len(held)))
    distinct = held.unique()
    if len(distinct) + len(zero) <= 2**bits:
        return torch.cat([distinct, zero]).sort().values
    # Evenly spaced starts keep the few large weights, which matter most (Han et al. 2016, section 3.2).
    ends, count = (float(held.min()), float(held.max())), 2**bits - len(zero)
    centroids = torch.linspace(*ends, count, dtype=torch.float64, device=held.device)
    return torch.cat([lloyd(held, centroids, MAX_STEPS).to(flat), zero]).unique()


def lloyd(numbers: Tensor, centroids: Tensor, steps: int) -> Tensor:
    """Sorted `centroids` of `numbers` [n] after at most `steps` of Lloyd's algorithm; a centroid without numbers stays where it is.

    In one dimension a cluster is a run of the sorted numbers, so that a step costs a binary search for each centroid:
    libraries for any dimension compare every number with every centroid.
    """
    ordered = numbers.double().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(steps):
        edges = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        ends = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(ordered))])
        counts = ends.diff()
        moved = torch.where(counts > 0, sums[ends].diff() / counts.clamp_min(1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


CODEBOOKS: Mapping[str, Values] = {"power_of_two": power_of_two, "k_means": k_means}


def nearest(weight: Tensor, values: Tensor) -> Tensor:
    """Index of the nearest of the sorted `values` for every number of `weight`; the smaller one of two equally near."""
    return torch.bucketize(weight, (values[1:] + values[:-1]) / 2)


def coded(weight: Tensor, layer: LayerPolicy) -> CodedWeight:
    """`weight` by the codebook and bits of `layer`; zeros stay zero and have code 0."""
    values = CODEBOOKS[layer.codebook](weight, layer.weight_bits)
    indices, count = nearest(weight, values), len(values)
    zeros = (values == 0).nonzero().flatten()
    origin = int(zeros[0]) if len(zeros) else count // 2
    codes = (indices - origin + count // 2) % count - count // 2
    return CodedWeight(codes.to(torch.int8).cpu().numpy(), values.roll(-origin).cpu().numpy())


@torch.no_grad()
def coded_copy(model: nn.Module, policy: Policy) -> tuple[nn.Module, dict[str, CodedWeight]]:
    """A copy of `model` with its weights decoded from their codebooks, and the codes; `model` itself where there are none."""
    layers = {name: layer for name, layer in policy.layers.items() if layer.has_codebook}
    if not layers:
        return model, {}
    model = copy.deepcopy(model)
    codes = {name: coded(_weight(model, name), layer) for name, layer in layers.items()}
    for name, weight in codes.items():
        _weight(model, name).copy_(torch.from_numpy(weight.values()))
    return model, codes


def _weight(model: nn.Module, name: str) -> Tensor:
    return layer_at(model, name).weight.detach()


class SharedValues(nn.Module):
    """A weight on its layer's codebook while it is trained; gradients pass straight through.

    Powers of two follow the largest weight; centroids move to the mean of their weights at every step.
    """

    values: Tensor

    def __init__(self, weight: Tensor, layer: LayerPolicy) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("values", CODEBOOKS[layer.codebook](weight.detach(), layer.weight_bits))

    def forward(self, weight: Tensor) -> Tensor:
        held = weight.detach()
        if self.training:
            self.values = self._moved(held)
        # In this order what is added is 0, and the result is the value itself, to its last bit.
        return (weight - held) + self.values[nearest(held, self.values)]

    def _moved(self, weight: Tensor) -> Tensor:
        if self.layer.codebook != "k_means":
            return CODEBOOKS[self.layer.codebook](weight, self.layer.weight_bits)
        zero = self.values == 0
        survivors = weight.flatten()[weight.flatten() != 0] if zero.any() else weight.flatten()
        centroids = lloyd(survivors, self.values[~zero].double(), 1).to(weight)
        return torch.cat([centroids, self.values[zero]]).sort().values
