"""Low bits without labels or training: weights rounded for what a layer computes, and biases that take the mean error.

| step | what | source |
|---|---|---|
| adaround | each weight goes up or down so that the layer's outputs on the calibration split change least | Nagel et al. 2020 (AdaRound), arXiv:2004.10568 |
| correct_bias | each channel's bias takes the mean that quantization adds to it | Nagel et al. 2019, arXiv:1906.04721, section 4.2, by calibration data |

Both go through the layers in the order they run, and see what the layers before them make on their grids.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...spaces.policies.candidate import Grid
from ...spaces.policies.policy import Policy
from ...workloads.workload import MapDataset
from ..batches import input_batches
from .fake_quantize import fake_quantized

SAMPLES = 128
"""Of the calibration split, at most."""

STEPS = 200
"""Of AdaRound, for each layer; the paper takes 10,000 at a lower learning rate."""

BATCH = 16
LEARNING_RATE = 0.04
LOW, HIGH = -0.1, 1.1
"""Ends of the stretched sigmoid (Louizos et al. 2018, arXiv:1712.01312)."""

REGULARISATION = 0.01
WARM_UP = 0.2
"""Share of the steps before weights are drawn to either end."""


def round_adaptively(
    model: nn.Module, policy: Policy, grids: Mapping[str, Grid], calibration: MapDataset, seed: int
) -> None:
    """Put every weight that `policy` has on a grid on one of its two neighbours there, in place; zeros stay zero.

    Args:
        model: float32, batch-norm folded.
        grids: of what layers read.
    """
    original, inputs = copy.deepcopy(model), _inputs(calibration)
    generator = torch.Generator().manual_seed(seed)
    wanted = {name for name, layer in policy.layers.items() if layer.has_weight_grid}
    with fake_quantized(model, policy, grids):
        for name in _in_order(original, inputs, wanted):
            layer: Any = model.get_submodule(name)
            read, _ = _runs(model, name, inputs)
            _, expected = _runs(original, name, inputs)
            stored, grid = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
            stored.data = rounded(
                layer, stored.detach(), grid.step(stored.detach()), grid.high, read, expected, generator
            )


def rounded(
    layer: Any, weight: Tensor, step: Tensor, high: int, read: Tensor, expected: Tensor, generator: torch.Generator
) -> Tensor:
    """`weight` on its grid of `high` steps to either side, rounded for `layer` to make `expected` of `read`.

    The largest weight of a channel, which the grid is found by, stays at its end.

    Args:
        step: of each channel, [out].
        read: [samples, ...], on the grid the layer reads.
        expected: [samples, ...], outputs of the float layer.
    """
    step = step.reshape(-1, *[1] * (weight.ndim - 1))
    steps = weight / step
    fixed = (weight == 0) | (steps.abs() > high - 1e-3)
    share = (steps - steps.floor()).clamp(0.01, 0.99)
    logit = ((share - LOW) / (HIGH - share)).log().requires_grad_()
    optimizer = torch.optim.Adam([logit], LEARNING_RATE)

    def on_grid(up: Tensor) -> Tensor:
        return torch.where(fixed, steps.round(), (steps.floor() + up).clamp(-high, high)) * step

    for index in range(STEPS):
        batch = torch.randint(len(read), (min(BATCH, len(read)),), generator=generator)
        up = (torch.sigmoid(logit) * (HIGH - LOW) + LOW).clamp(0, 1)
        error = functional.mse_loss(_output(layer, on_grid(up), read[batch]), expected[batch]) * len(weight)
        optimizer.zero_grad()
        (error + _regularisation(up, index / STEPS)).backward()
        optimizer.step()
    return on_grid((logit.detach() > 0).to(weight.dtype))


def _regularisation(up: Tensor, done: float) -> Tensor:
    """Draws every share to 0 or 1, ever nearer ones as training goes on."""
    if done < WARM_UP:
        return up.new_zeros(())
    power = 20 - 18 * (done - WARM_UP) / (1 - WARM_UP)
    return REGULARISATION * (1 - (2 * up - 1).abs() ** power).sum()


def _output(layer: Any, weight: Tensor, read: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(read, weight, layer.bias)
    return layer._conv_forward(read, weight, layer.bias)


@torch.no_grad()
def correct_biases(model: nn.Module, policy: Policy, grids: Mapping[str, Grid], calibration: MapDataset) -> None:
    """Add to every bias what quantization takes from the mean of its channel, in place; weights stay as they are.

    Args:
        model: float32, batch-norm folded; layers without a bias get one.
        grids: of what layers read.
    """
    original, inputs = copy.deepcopy(model), _inputs(calibration)
    names = _in_order(original, inputs, set(policy.layers))
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in names}  # type: ignore[union-attr,operator]
    for name in names:
        layer: Any = model.get_submodule(name)
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    with fake_quantized(model, policy, grids):
        for name in names:
            expected, found = (_channel_means(network, name, inputs) for network in (original, model))
            model.get_submodule(name).bias.add_(expected - found)  # type: ignore[union-attr,operator]
    for name, weight in weights.items():
        model.get_submodule(name).weight.copy_(weight)  # type: ignore[union-attr,operator]


def _channel_means(model: nn.Module, name: str, inputs: Sequence[Tensor]) -> Tensor:
    _, outputs = _runs(model, name, inputs)
    axis = outputs.ndim - 1 if isinstance(model.get_submodule(name), nn.Linear) else 1
    return outputs.mean([dimension for dimension in range(outputs.ndim) if dimension != axis])


def _inputs(calibration: MapDataset) -> list[Tensor]:
    batches, left = [], SAMPLES
    for batch in input_batches(calibration, min(SAMPLES, len(calibration))):
        batches.append(batch[:left])
        left -= len(batches[-1])
        if not left:
            break
    return batches


@torch.no_grad()
def _in_order(model: nn.Module, inputs: Sequence[Tensor], wanted: set[str]) -> list[str]:
    """The `wanted` layers in the order they first run."""
    order: dict[str, None] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: order.setdefault(name)) for name in wanted
    ]
    model(inputs[0])
    for hook in hooks:
        hook.remove()
    return list(order)


@torch.no_grad()
def _runs(model: nn.Module, name: str, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the layer reads and what it makes in all its runs over `inputs`, each [samples x runs, ...]."""
    read: list[Tensor] = []
    made: list[Tensor] = []

    def keep(_layer: nn.Module, arguments: tuple, output: Tensor) -> None:
        read.append(arguments[0])
        made.append(output)

    hook = model.get_submodule(name).register_forward_hook(keep)
    for batch in inputs:
        model(batch)
    hook.remove()
    return torch.cat(read), torch.cat(made)
