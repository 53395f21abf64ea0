"""Batch-norm folded into the layer before it, as lowering does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..core.batch import device_of_model
from ..core.errors import CompressionError
from ..core.interrupts import raise_if_interrupted

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

PLAIN_FORWARDS = {kind.forward for kind in (*BATCH_NORMS, nn.SyncBatchNorm)}
"""What computes a batch-norm and nothing else."""


def folded_parameters(model: nn.Module, name: str, norm_name: str | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer `name`, with the batch-norm after it folded in where there is one."""
    layer: Any = model.get_submodule(name)
    if norm_name is None:
        return layer.weight, layer.bias
    norm: Any = model.get_submodule(norm_name)
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    return fuse(layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)


def fold_norms(model: nn.Module, folded: Mapping[str, str]) -> None:
    """Fold batch-norms into the layers before them, in place: {layer: batch-norm}. What else one computes, such as an activation, stays.

    A lowered model is quantized with its folded weights, so quantization-aware training must see the folded weights too.

    Raises:
        CompressionError: a batch-norm of a class of its own is not one that its parts follow.
    """
    rest = {
        norm: _rest(norm, model.get_submodule(norm)) for norm in {*folded.values()}
    }  # one may follow several layers
    for name, norm_name in folded.items():
        layer: Any = model.get_submodule(name)
        layer.weight, layer.bias = folded_parameters(model, name, norm_name)
    for norm_name, others in rest.items():
        model.set_submodule(norm_name, others)


@torch.no_grad()
def unfold(model: nn.Module, name: str, norm_name: str) -> None:
    """Give the layer `name`, whose weight and bias have the batch-norm after it folded in, those that become them when it is run."""
    layer: Any = model.get_submodule(name)
    norm: Any = model.get_submodule(norm_name)
    scale, shift = _scale_and_shift(norm)
    divisor = torch.where(scale == 0, 1.0, scale)
    layer.weight.div_(_along(divisor, layer.weight, 0))
    if layer.bias is not None:
        layer.bias.copy_((layer.bias - shift) / divisor)


@torch.no_grad()
def _rest(name: str, norm: nn.Module) -> nn.Module:
    """What a batch-norm computes of the normalised numbers: nothing, or what its parts do, as the activation in one of timm's."""
    if not isinstance(norm, (*BATCH_NORMS, nn.SyncBatchNorm)):
        raise CompressionError(
            f"{name or 'the model'} normalises batches and is no batch-norm of torch, so it cannot be folded"
        )
    if type(norm).forward in PLAIN_FORWARDS:
        return nn.Identity()
    rest = nn.Sequential(OrderedDict(norm.named_children())).eval()
    axes = next(axes for axes, kind in enumerate((*BATCH_NORMS, nn.SyncBatchNorm)) if isinstance(norm, kind))
    shape = (2, norm.num_features, *[3] * (axes + 1 if axes else 0))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device_of_model(norm))
    scale, shift = (_along(each, values, 1) for each in _scale_and_shift(norm))
    if not _is_alike(norm.eval(), rest, values, values * scale + shift):
        raise CompressionError(
            f"{name}, a {type(norm).__name__}, is not a batch-norm that its parts follow, so it cannot be folded"
        )
    return rest


def _is_alike(norm: nn.Module, rest: nn.Module, values: Tensor, normalised: Tensor) -> bool:
    try:
        return torch.allclose(norm(values), rest(normalised), rtol=1e-3, atol=1e-4)
    except Exception as error:  # a class of the user's may take a mask too, or other shapes
        raise_if_interrupted(error)
        return False


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch-norm in evaluation mode is scale x values + shift."""
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _along(values: Tensor, other: Tensor, axis: int) -> Tensor:
    return values.view([-1 if each == axis else 1 for each in range(other.ndim)])
