"""Compact operators in place of dense layers: each is the best approximation of the layer's weights, or of the layer's outputs
on the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.errors import CompressionError
from ...spaces.models.layers import Convolution, WeightedLayer
from ...spaces.policies.operators import DENSE, Operator, rank_of
from ..moments import Moments, moments_of


@torch.no_grad()
def replace_operators(model: nn.Module, choices: Mapping[str, str], batches: Iterable[Batch] | None = None) -> None:
    """Replace layers of `model` by the operators that `choices` names (layer -> text), in place.

    Args:
        batches: inputs of the model, shape [batch, ...], of the calibration data; for "pca".

    Raises:
        CompressionError: an operator cannot replace its layer, or "pca" was chosen without batches.
    """
    operators = {name: Operator.parse(choice) for name, choice in choices.items()}
    layers = {name: _replaceable(model, name, operator, choices[name]) for name, operator in operators.items()}
    made = _output_moments(model, [layers[n] for n, operator in operators.items() if operator.kind == "pca"], batches)
    for name, operator in operators.items():
        if operator.kind != DENSE:
            layer = layers[name]
            model.set_submodule(name, _compact(layer, operator, made.get(layer)).to(layer.weight.device))


def _replaceable(model: nn.Module, name: str, operator: Operator, choice: str) -> WeightedLayer:
    """The layer at `name`, which `operator` can replace."""
    layer = model.get_submodule(name)
    if not isinstance(layer, WeightedLayer):
        raise CompressionError(f"no layer {name!r} in the model")
    if problem := operator.why_not(tuple(layer.weight.shape), getattr(layer, "groups", 1)):
        raise CompressionError(f"{choice} cannot replace {name}: {problem}")
    return layer


def _output_moments(
    model: nn.Module, layers: Sequence[nn.Module], batches: Iterable[Batch] | None
) -> Mapping[nn.Module, Moments]:
    if not layers:
        return {}
    if batches is None:
        raise CompressionError("principal components need the calibration data of a workload")
    return moments_of(model, layers, batches, "made")


def _compact(layer: WeightedLayer, operator: Operator, made: Moments | None) -> nn.Module:
    """What `operator` puts in the place of `layer`; `made` are the moments of its outputs, for "pca"."""
    if made is not None:
        return principal(layer, operator.amount, made)
    if operator.kind == "rank":
        return low_rank(layer, operator.amount)
    assert not isinstance(layer, nn.Linear), f"{operator.kind} replaces convolutions only"
    return separable(layer) if operator.kind == "separable" else grouped(layer, int(operator.amount))


@torch.no_grad()
def separable(layer: Convolution) -> nn.Sequential:
    """A depthwise and a 1x1 convolution (Howard et al. 2017, arXiv:1704.04861), for each input channel the nearest product
    of a filter and a vector of output weights: the first singular vectors (Guo et al. 2018, arXiv:1808.05517)."""
    weight = layer.weight
    outputs, inputs = weight.shape[:2]
    # [in, out, kernel elements] = U S V, one matrix per input channel
    left, values, right = torch.linalg.svd(weight.transpose(0, 1).flatten(2), full_matrices=False)
    root = values[:, 0].sqrt()
    depthwise = _convolution(layer, inputs, inputs, groups=inputs)
    _set(depthwise, (root[:, None] * right[:, 0]))
    pointwise = _pointwise(layer, inputs, outputs, layer.bias is not None)
    _set(pointwise, (root[:, None] * left[:, :, 0]).T, layer.bias)
    return nn.Sequential(depthwise, pointwise)


@torch.no_grad()
def grouped(layer: Convolution, groups: int) -> Convolution:
    """A convolution in groups, each with the weights between its own channels (Xie et al. 2017, arXiv:1611.05431)."""
    weight = layer.weight
    outputs, inputs = weight.shape[:2]
    compact = _convolution(layer, inputs, outputs, groups=groups, bias=layer.bias is not None)
    blocks = weight.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
    _set(compact, torch.cat([blocks[group, :, group] for group in range(groups)]), layer.bias)
    return compact


@torch.no_grad()
def low_rank(layer: WeightedLayer, fraction: float) -> nn.Sequential:
    """Two layers whose product is the nearest of its rank to the dense one, by singular values (Eckart & Young 1936).

    Of a convolution, the first has its kernel and the second is 1x1 (Zhang et al. 2015, arXiv:1505.06798).
    """
    rows = layer.weight.flatten(1)
    rank = rank_of(rows.shape, fraction)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    root = values[:rank].sqrt()
    first, second = _factors(layer, rank, layer.bias is not None)
    _set(first, (root[:, None] * right[:rank]))
    _set(second, (left[:, :rank] * root), layer.bias)
    return nn.Sequential(first, second)


@torch.no_grad()
def principal(layer: WeightedLayer, fraction: float, made: Moments) -> nn.Sequential:
    """Two layers: the first computes the principal components of the dense layer's output, the second expands them.

    The best approximation of its rank to the layer's outputs, which vary in fewer directions than its weights (Zhang et al. 2015,
    arXiv:1505.06798, section 3.1): y is replaced by its mean + U U^T (y - its mean), U the strongest eigenvectors of y's covariance.
    """
    rows = layer.weight.flatten(1)
    rank = rank_of(rows.shape, fraction)
    components = torch.linalg.eigh(made.covariance).eigenvectors[:, -rank:].flip(1)  # [outputs, rank], strongest first
    bias = torch.zeros(len(rows)) if layer.bias is None else layer.bias
    first, second = _factors(layer, rank, bias=True)
    _set(first, (components.T @ rows.double()))
    _set(second, components, made.mean - components @ (components.T @ (made.mean - bias.to(made.mean))))
    return nn.Sequential(first, second)


def _factors(layer: WeightedLayer, rank: int, bias: bool) -> tuple[WeightedLayer, WeightedLayer]:
    """Two layers with `rank` channels between them, whose product has the kernel, stride and padding of `layer`."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias)
    outputs, inputs = layer.weight.shape[:2]
    return _convolution(layer, inputs, rank), _pointwise(layer, rank, outputs, bias)


def _convolution(layer: Convolution, inputs: int, outputs: int, groups: int = 1, bias: bool = False) -> Convolution:
    """A convolution with the kernel size, stride, padding and dilation of `layer`."""
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return _constructor(layer)(inputs, outputs, *geometry, groups, bias, layer.padding_mode)


def _constructor(layer: Convolution) -> Callable[..., Convolution]:
    """The class of `layer`, whose geometry has as many dimensions as the class takes, which its type does not say."""
    return type(layer)


def _pointwise(layer: Convolution, inputs: int, outputs: int, bias: bool) -> Convolution:
    """A 1x1 convolution over as many dimensions as `layer`."""
    return type(layer)(inputs, outputs, 1, bias=bias)


def _set(layer: WeightedLayer, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)
