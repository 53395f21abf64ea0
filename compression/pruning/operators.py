"""Compact operators in place of dense layers, set to the nearest they can come to the weights they stand for, or to what those
make of the calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...core.errors import CompressionError
from ...spaces.policies.operators import Operator, rank_of
from ..moments import Moments, moments_of


@torch.no_grad()
def replace_operators(model: nn.Module, choices: Mapping[str, str], batches: Iterable[Tensor] | None = None) -> None:
    """Put the operators `choices` names (layer -> text) in the places of layers, in place.

    Args:
        batches: inputs of the model, shape [batch, ...], of the calibration data; for "pca".

    Raises:
        CompressionError: an operator cannot stand for its layer, or there are no batches to find components in.
    """
    operators = {name: Operator.parse(choice) for name, choice in choices.items()}
    layers = {name: model.get_submodule(name) for name in choices}
    for name, operator in operators.items():
        weight = getattr(layers[name], "weight", None)
        if not isinstance(weight, Tensor):
            raise CompressionError(f"no layer {name!r} in the model")
        shape = tuple(weight.shape)
        if problem := operator.why_not(shape, getattr(layers[name], "groups", 1)):
            raise CompressionError(f"{choices[name]} cannot stand for {name}: {problem}")
    by_data = [layers[name] for name, operator in operators.items() if operator.kind == "pca"]
    if by_data and batches is None:
        raise CompressionError("principal components need the calibration data of a workload")
    made = moments_of(model, by_data, batches or (), "made") if by_data else {}
    for name, operator in operators.items():
        _replace(model, name, operator, made)


def _replace(model: nn.Module, name: str, operator: Operator, made: Mapping[nn.Module, Moments]) -> None:
    layer = model.get_submodule(name)
    if operator.kind == "separable":
        model.set_submodule(name, separable(layer))
    elif operator.kind == "groups":
        model.set_submodule(name, grouped(layer, int(operator.amount)))
    elif operator.kind == "rank":
        model.set_submodule(name, low_rank(layer, operator.amount))
    elif operator.kind == "pca":
        model.set_submodule(name, principal(layer, operator.amount, made[layer]))


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
    rows: Tensor = layer.weight.flatten(1)  # type: ignore[operator,union-attr]
    rank = rank_of(rows.shape, fraction)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    root = values[:rank].sqrt()
    first, second = _factors(layer, rank, layer.bias is not None)
    _set(first, (root[:, None] * right[:rank]))
    _set(second, (left[:, :rank] * root))
    if layer.bias is not None:
        second.bias.copy_(layer.bias)  # type: ignore[operator,union-attr]
    return nn.Sequential(first, second)


@torch.no_grad()
def principal(layer: nn.Module, fraction: float, made: Moments) -> nn.Sequential:
    """Two layers: the first makes the principal components of what the dense one makes, the second what they stand for.

    The nearest of its rank to the layer's outputs, which vary in fewer directions than its weights (Zhang et al. 2015,
    arXiv:1505.06798, section 3.1): y is replaced by its mean + U U^T (y - its mean), U the strongest eigenvectors of y's covariance.
    """
    rows: Tensor = layer.weight.flatten(1)  # type: ignore[operator,union-attr]
    rank = rank_of(rows.shape, fraction)
    components = torch.linalg.eigh(made.covariance).eigenvectors[:, -rank:].flip(1)  # [outputs, rank], strongest first
    bias = torch.zeros(len(rows)) if layer.bias is None else layer.bias  # type: ignore[assignment]
    first, second = _factors(layer, rank, bias=True)
    _set(first, (components.T @ rows.double()))
    _set(second, components)
    beyond = made.mean - components @ (components.T @ (made.mean - bias.to(made.mean)))  # type: ignore[operator,union-attr]
    second.bias.copy_(beyond)  # type: ignore[operator,union-attr]
    return nn.Sequential(first, second)


def _factors(layer: nn.Module, rank: int, bias: bool) -> tuple[nn.Module, nn.Module]:
    """The layers before and behind `rank` channels that together move over the input as `layer` does."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias)
    inputs, outputs = layer.weight.shape[1], layer.weight.shape[0]  # type: ignore[index,union-attr]
    return _convolution(layer, inputs, rank), type(layer)(rank, outputs, 1, bias=bias)  # type: ignore[call-arg,arg-type]


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
