"""Batch-norm folded into the layer before it, as lowering does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded_parameters(model: nn.Module, name: str, norm_name: str | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer `name`, with the batch-norm after it folded in where there is one."""
    layer: Any = model.get_submodule(name)
    if norm_name is None:
        return layer.weight, layer.bias
    norm: Any = model.get_submodule(norm_name)
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    return fuse(layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)


def fold_norms(model: nn.Module, folded: Mapping[str, str]) -> None:
    """Fold batch-norms into the layers before them, in place: {layer: batch-norm}, which becomes the identity.

    A lowered model is quantized with its folded weights, so quantization-aware training must see the folded weights too.
    """
    for name, norm_name in folded.items():
        layer: Any = model.get_submodule(name)
        layer.weight, layer.bias = folded_parameters(model, name, norm_name)
    for norm_name in {*folded.values()}:  # one may follow several layers
        model.set_submodule(norm_name, nn.Identity())
