"""Compact operators in place of dense layers, set to the nearest they can come to the weights they stand for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import CompressionError
from ..spaces.operators import Operator


@torch.no_grad()
def replace_operator(model: nn.Module, name: str, choice: str) -> None:
    """Put the operator `choice` names in the place of the layer `name`, in place.

    Raises:
        CompressionError: no such operator, or it cannot stand for this layer.
    """
    layer = model.get_submodule(name)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    operator = Operator.parse(choice)
    problem = operator.why_not(tuple(weight.shape), getattr(layer, "groups", 1))
    if problem:
        raise CompressionError(f"{choice} cannot stand for {name}: {problem}")
    if operator.kind == "separable":
        model.set_submodule(name, separable(layer))
    elif operator.kind == "groups":
        model.set_submodule(name, grouped(layer, int(operator.amount)))
    elif operator.kind == "rank":
        model.set_submodule(name, low_rank(layer, operator.amount))


@torch.no_grad()
def separable(layer: nn.Module) -> nn.Sequential:
    """A depthwise and a 1x1 convolution (Howard et al. 2017, arXiv:1704.04861), for each input channel the nearest product
    of a filter and a vector of output weights: the first singular vectors (Guo et al. 2018, arXiv:1808.05517)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    outputs, inputs = weight.shape[:2]
    # [in, out, kernel elements] = U S V, one matrix per input channel
    left, values, right = torch.linalg.svd(weight.transpose(0, 1).flatten(2), full_matrices=False)
    root = values[:, 0].sqrt()
    depthwise = _convolution(layer, inputs, inputs, groups=inputs)
    _set(depthwise, (root[:, None] * right[:, 0]))
    pointwise = _pointwise(layer, inputs, outputs)
    _set(pointwise, (root[:, None] * left[:, :, 0]).T)
    return nn.Sequential(depthwise, pointwise)


@torch.no_grad()
def grouped(layer: nn.Module, groups: int) -> nn.Module:
    """A convolution in groups, each with the weights between its own channels (Xie et al. 2017, arXiv:1611.05431)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    outputs, inputs = weight.shape[:2]
    compact = _convolution(layer, inputs, outputs, groups=groups, bias=layer.bias is not None)
    blocks = weight.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
    _set(compact, torch.cat([blocks[group, :, group] for group in range(groups)]))
    if layer.bias is not None:
        compact.bias.copy_(layer.bias)  # type: ignore[arg-type]
    return compact


@torch.no_grad()
def low_rank(layer: nn.Module, fraction: float) -> nn.Sequential:
    """Two layers whose product is the nearest of its rank to the dense one, by singular values (Eckart & Young 1936).

    Of a convolution, the first has its kernel and the second is 1x1 (Zhang et al. 2015, arXiv:1505.06798).
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    rows = weight.flatten(1)
    rank = max(1, round(fraction * min(rows.shape)))
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    root = values[:rank].sqrt()
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    else:
        first, second = _convolution(layer, weight.shape[1], rank), _pointwise(layer, rank, weight.shape[0])
    _set(first, (root[:, None] * right[:rank]))
    _set(second, (left[:, :rank] * root))  # type: ignore[operator,union-attr]
    return nn.Sequential(first, second)


def _convolution(layer: nn.Module, inputs: int, outputs: int, groups: int = 1, bias: bool = False) -> nn.Module:
    """A convolution that moves over its input as `layer` does."""
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return type(layer)(inputs, outputs, *geometry, groups, bias, layer.padding_mode)  # type: ignore[call-arg,arg-type]


def _pointwise(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution with the bias of `layer`."""
    convolution = type(layer)(inputs, outputs, 1, bias=layer.bias is not None)  # type: ignore[call-arg,arg-type]
    if layer.bias is not None:
        convolution.bias.copy_(layer.bias)  # type: ignore[operator,union-attr]
    return convolution


def _set(layer: nn.Module, values: Tensor) -> None:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    weight.copy_(values.reshape(weight.shape))
