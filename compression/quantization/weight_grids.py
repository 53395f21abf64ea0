"""Integer grids of weights, as they are rounded while a model computes in float: one scale for each output channel, or one for
each group of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.errors import CompressionError
from ...spaces.models.embeddings import embeddings_of
from ...spaces.models.recurrent import RecurrentLayer, is_single_layer, matrix_names
from ...spaces.policies.candidate import QuantizedWeight, QuantParams
from ...spaces.policies.layer_policy import LayerPolicy
from ...spaces.policies.policy import Policy
from ...spaces.policies.quantization_scheme import Scheme
from ...spaces.policies.recurrent_weights import INT8_BITS
from ..folding import folded_parameters

SMALLEST_SCALE = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Levels:
    """What each number of a weight may become: `scale` x an integer from `low` to `high`.

    Attributes:
        scale, low, high: broadcast to the weight.
        ends: where the weight is at an end of its range, shape of the weight: elsewhere, it would change the scale that is read from it.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    ends: Tensor

    def rounded(self, weight: Tensor) -> Tensor:
        """The numbers nearest to `weight`."""
        return (weight / self.scale).round().clamp(self.low, self.high) * self.scale

    def of_input(self, index: int) -> Levels:
        """Those of one input of a linear layer, each [out]."""
        parts = (self.scale, self.low, self.high, self.ends)
        return Levels(*(part.expand_as(self.ends)[:, index] for part in parts))


class SymmetricWeight(nn.Module):
    """A weight [out, in, ...] on its symmetric grid of `bits` bits, without the most negative integer."""

    def __init__(self, bits: int, scheme: Scheme = Scheme()) -> None:
        super().__init__()
        self.scheme = scheme
        self.high = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        scale = self.scale(weight.detach())
        zero_point = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -self.high, self.high)

    def scale(self, weight: Tensor) -> Tensor:
        """The scale of each output channel, [out]."""
        largest = weight.flatten(1).abs().amax(dim=1)
        if self.scheme.weights == "tensor":
            largest = largest.amax().expand_as(largest)
        return (largest / self.high).clamp_min(SMALLEST_SCALE)

    def levels(self, weight: Tensor) -> Levels:
        """What the numbers of `weight` may become."""
        scale, high = self.scale(weight).reshape(-1, *[1] * (weight.ndim - 1)), weight.new_tensor(self.high)
        return Levels(scale, -high, high, (weight / scale).abs() > high - 1e-3)


class GroupedWeight(nn.Module):
    """A weight [out, in] whose neighbouring inputs share a scale by groups of `size`, the last group perhaps of fewer.

    A symmetric grid has zero in its middle and leaves the most negative integer out; an affine one spreads all 2^bits integers
    over zero and the range of its group.
    """

    def __init__(self, bits: int, size: int, scheme: Scheme = Scheme()) -> None:
        super().__init__()
        self.size, self.is_affine = size, scheme.group_grids == "affine"
        self.high = 2 ** (bits - 1) - 1
        self.low = -self.high - self.is_affine

    def forward(self, weight: Tensor) -> Tensor:
        scale, zero_point = self.affine(weight.detach())
        groups = self._groups(weight)
        rounded = torch.fake_quantize_per_channel_affine(groups, scale, zero_point, 0, self.low, self.high)
        return self._joined(rounded, weight)

    def affine(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each group, [out x groups], those of one output next to each other."""
        groups = self._groups(weight)
        if not self.is_affine:
            scale = (groups.abs().amax(1) / self.high).clamp_min(SMALLEST_SCALE)
            return scale, torch.zeros_like(scale, dtype=torch.int32)
        least, most = groups.amin(1).clamp_max(0), groups.amax(1).clamp_min(0)
        scale = ((most - least) / (self.high - self.low)).clamp_min(SMALLEST_SCALE)
        return scale, (self.low - least / scale).round().clamp(self.low, self.high).int()

    def levels(self, weight: Tensor) -> Levels:
        """What the numbers of `weight` may become."""
        groups = self._groups(weight) if self.is_affine else self._groups(weight).abs()
        most, least = groups.amax(1, keepdim=True), groups.amin(1, keepdim=True)
        ends = (groups == most) | (groups == least) if self.is_affine else groups == most
        parts = (*(part[:, None].expand_as(groups) for part in self.affine(weight)), ends)
        scale, zero_point, ends = (self._joined(part, weight) for part in parts)
        return Levels(scale, self.low - zero_point, self.high - zero_point, ends)

    def quantized(self, weight: Tensor, bias: np.ndarray | None) -> QuantizedWeight:
        """`weight` in integers, by PT2E's own operation."""
        scale, zero_point = self.affine(weight)
        integers = torch.ops.quantized_decomposed.quantize_per_channel(
            self._groups(weight), scale, zero_point, 0, self.low, self.high, torch.int8
        )
        scales, zero_points = (part.reshape(len(weight), -1).cpu().numpy() for part in (scale, zero_point))
        grid = QuantParams(scales, zero_points.astype(np.int8), self.low, self.high)
        return QuantizedWeight(self._joined(integers, weight).cpu().numpy(), grid, bias, self.size)

    def _groups(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out x groups, size], filled up with zeros, which are on every grid."""
        return functional.pad(weight, (0, -weight.shape[1] % self.size)).reshape(-1, self.size)

    def _joined(self, groups: Tensor, weight: Tensor) -> Tensor:
        """The inverse of `_groups`."""
        return groups.reshape(len(weight), -1)[:, : weight.shape[1]].contiguous()


WeightGrid = SymmetricWeight | GroupedWeight


def weight_grid(layer: LayerPolicy, scheme: Scheme) -> WeightGrid:
    """The grid of a layer whose weight has one."""
    if layer.has_groups:
        return GroupedWeight(layer.weight_bits, layer.weight_group_size, scheme)
    return SymmetricWeight(layer.weight_bits, scheme)


def recurrent_layer(model: nn.Module, name: str) -> RecurrentLayer:
    """The recurrent layer `name`, whose matrices a policy puts on grids.

    Raises:
        CompressionError: it is none, or a stack of several.
    """
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, RecurrentLayer) or not is_single_layer(layer):
        raise CompressionError(f"no recurrent layer {name!r} in the model")
    return layer


def embedding(model: nn.Module, name: str) -> nn.Embedding:
    """The embedding `name`, whose table a policy puts on a grid.

    Raises:
        CompressionError: it is none, or its table is to be left alone.
    """
    reasons, module = embeddings_of(model), dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Embedding):
        raise CompressionError(f"no embedding {name!r} in the model")
    if reason := reasons[name]:
        raise CompressionError(f"embedding {name!r}: {reason}")
    return module


@torch.no_grad()
def quantized_tables(model: nn.Module, policy: Policy) -> dict[str, QuantizedWeight]:
    """Embedding -> its table, of those that `policy` puts on 8 or 4 bits; one scale for each row.

    Raises:
        CompressionError: there is no such embedding, or its table is not finite.
    """
    tables = {name: embedding(model, name).weight.detach() for name in policy.embeddings}
    return {name: _by_row(table, policy.embeddings[name], f"{name!r}: its table") for name, table in tables.items()}


def _by_row(matrix: Tensor, bits: int, what: str) -> QuantizedWeight:
    """A matrix on its symmetric grid of `bits` bits, one scale for each row.

    Raises:
        CompressionError: it is not finite.
    """
    if not bool(matrix.isfinite().all()):
        raise CompressionError(f"layer {what} holds NaN or infinite numbers")
    grid = SymmetricWeight(bits)
    scale = grid.scale(matrix)
    integers = (matrix / scale[:, None]).round().clamp(-grid.high, grid.high).to(torch.int8).cpu().numpy()
    params = QuantParams(scale.cpu().numpy(), np.zeros(len(scale), np.int8), -grid.high, grid.high)
    return QuantizedWeight(integers, params, None)


@torch.no_grad()
def quantized_recurrences(model: nn.Module, policy: Policy) -> dict[str, QuantizedWeight]:
    """Path of a matrix -> its integers, of the recurrent layers that `policy` puts on 8 bits; one scale for each row.

    Raises:
        CompressionError: there is no such layer, or a matrix is not finite.
    """
    found = {}
    for name in policy.recurrent:
        layer = recurrent_layer(model, name)
        for key in matrix_names(layer):
            matrix = layer.get_parameter(key).detach()
            found[f"{name}.{key}"] = _by_row(matrix, INT8_BITS, f"{name!r}: its {key}")
    return found


@torch.no_grad()
def grouped_weights(model: nn.Module, policy: Policy, norms: Mapping[str, str]) -> dict[str, QuantizedWeight]:
    """Layer -> its weight, of the layers whose inputs have scales by groups.

    Args:
        norms: layer -> batch-norm that lowering folds into it.

    Raises:
        CompressionError: such a layer is not linear, or its weight is not finite.
    """
    found = {}
    for name, layer in policy.layers.items():
        if not layer.has_groups:
            continue
        if not isinstance(model.get_submodule(name), nn.Linear):
            raise CompressionError(f"layer {name!r} is not linear; only linear layers have scales by groups of inputs")
        weight, bias = folded_parameters(model, name, norms.get(name))
        if not bool(weight.isfinite().all()):
            raise CompressionError(f"layer {name!r}: its weight holds NaN or infinite numbers")
        grid = GroupedWeight(layer.weight_bits, layer.weight_group_size, policy.scheme)
        found[name] = grid.quantized(weight, None if bias is None else bias.cpu().numpy())
    return found
