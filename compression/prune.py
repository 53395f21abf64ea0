"""Width and channels really removed; weight masks; batch-norm statistics re-estimated."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ..errors import CompressionError
from ..spaces.channel_groups import ChannelGroup
from ..spaces.layers import LAYER_KINDS
from ..spaces.policy import Policy, Sparsity
from ..workloads.workload import MapDataset
from .batches import input_batches
from .channels import remove_channels

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def kept_channels(policy: Policy, groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Group -> channels the policy keeps, for the groups that lose any.

    Raises:
        CompressionError: the policy names a group the model does not have.
    """
    unknown = set(policy.channels) - {group.name for group in groups}
    if unknown:
        raise CompressionError(f"no channel group {sorted(unknown)[0]!r} in the model")
    kept = {group.name: group.kept(policy.kept_fraction(group.name)) for group in groups}
    return {group.name: kept[group.name] for group in groups if kept[group.name] < group.channels}


def is_structurally_changed(policy: Policy, groups: Sequence[ChannelGroup]) -> bool:
    """Whether the policy removes channels or zeroes weights, which shifts what batch-norm normalises."""
    return bool(kept_channels(policy, groups)) or any(layer.sparsity for layer in policy.layers.values())


def pruned_copy(model: nn.Module, example_input: Tensor, policy: Policy, groups: Sequence[ChannelGroup]) -> nn.Module:
    """A copy of `model` with the policy's channels removed and its masked weights zeroed, in eval mode.

    Raises:
        CompressionError: the policy does not fit the model.
    """
    slim = copy.deepcopy(model).eval()
    remove_channels(slim, example_input, kept_channels(policy, groups))
    for name, layer in policy.layers.items():
        if layer.sparsity:
            mask_weight(_layer(slim, name), layer.sparsity)
    return slim


def mask_weight(layer: nn.Module, sparsity: Sparsity) -> None:
    """Zero the smallest weights of `layer`: a fraction of all, or two of every four along the input dimension.

    The 2:4 pattern is that of NVIDIA's sparse tensor cores (Mishra et al. 2021, arXiv:2104.08378).

    Raises:
        CompressionError: "2:4" on a weight whose input dimension is no multiple of four, which is then left as it is.
    """
    if sparsity == "2:4":
        prune.custom_from_mask(layer, "weight", two_of_four_mask(layer.weight.detach()))  # type: ignore[arg-type]
    else:
        prune.l1_unstructured(layer, "weight", amount=float(sparsity))
    prune.remove(layer, "weight")  # the zeros stay; only the parametrisation goes


def two_of_four_mask(weight: Tensor) -> Tensor:
    """1 for the two largest magnitudes of every four weights along the flattened input dimensions, else 0.

    Args:
        weight: shape [out, in, ...]; in x kernel size must be a multiple of four.
    """
    rows = weight.reshape(weight.shape[0], -1)
    if rows.shape[1] % 4:
        raise CompressionError(f"2:4 sparsity needs an input dimension that is a multiple of 4, not {rows.shape[1]}")
    quads = rows.abs().reshape(-1, 4)
    mask = torch.zeros_like(quads).scatter_(1, quads.topk(2, dim=1).indices, 1.0)
    return mask.reshape(weight.shape)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, calibration: MapDataset, batch_size: int = 50) -> None:
    """Replace the running statistics of every batch-norm by cumulative averages over `calibration`, in place.

    Pruning shifts the statistics its survivors were normalised with (Li et al. 2020, EagleEye, arXiv:2007.02491).
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for batch in input_batches(calibration, batch_size):
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _layer(model: nn.Module, name: str) -> nn.Module:
    layer = dict(model.named_modules()).get(name)
    if type(layer) not in LAYER_KINDS:
        raise CompressionError(f"no layer {name!r} in the model")
    return layer  # type: ignore[return-value]
