"""AdaRound: weights rounded up or down so that their layer's outputs on the calibration split change least.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568. Layers are rounded in the
order they run, each on the inputs that the already quantized layers before it produce.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.batch import device_of_model
from ...spaces.models.layers import WeightedLayer, layer_at
from ...spaces.policies.candidate import QuantParams
from ...spaces.policies.policy import Policy
from ...workloads.workload import MapDataset
from .fake_quantize import PARAMETRIZED, fake_quantized
from .layer_runs import calibration_inputs, in_execution_order, inputs_and_outputs
from .weight_grids import Levels, WeightGrid

STEPS = 200
"""How many optimisation steps each layer takes; the paper takes 10,000 at a lower learning rate."""

BATCH = 16
LEARNING_RATE = 0.04
LOW, HIGH = -0.1, 1.1
"""The sigmoid is stretched to these ends, so that it reaches 0 and 1 (Louizos et al. 2018, arXiv:1712.01312)."""

REGULARISATION = 0.01
WARM_UP = 0.2
"""This share of the steps passes before the regularisation starts."""


def round_adaptively(
    model: nn.Module, policy: Policy, grids: Mapping[str, QuantParams], calibration: MapDataset, seed: int
) -> None:
    """Round every quantized weight of `policy` up or down, in place; zeros stay zero.

    Args:
        model: float32, batch-norm folded.
        grids: layer -> quantization parameters of its input.
    """
    original, inputs = copy.deepcopy(model), calibration_inputs(calibration, device_of_model(model))
    generator = torch.Generator().manual_seed(seed)
    quantized = {name for name, layer in policy.layers.items() if layer.has_weight_grid}
    with fake_quantized(model, policy, grids):
        for name in in_execution_order(original, inputs, quantized):
            layer = layer_at(model, name)
            stored, grid = layer.get_parameter(f"{PARAMETRIZED}.original"), layer.get_submodule(f"{PARAMETRIZED}.0")
            assert isinstance(grid, WeightGrid)
            read, _ = inputs_and_outputs(model, name, inputs)
            _, expected = inputs_and_outputs(original, name, inputs)
            weight = stored.detach()
            stored.data = rounded(layer, weight, grid.levels(weight), read, expected, generator)


def rounded(
    layer: WeightedLayer,
    weight: Tensor,
    levels: Levels,
    read: Tensor,
    expected: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """`weight` rounded up or down to `levels`, so that `layer` maps `read` to `expected` as closely as it can.

    The weights that define a scale stay at the end of their range.

    Args:
        read: quantized inputs of the layer, [samples, ...].
        expected: outputs of the float layer, [samples, ...].
    """
    scale = levels.scale
    steps = weight / scale
    fixed = (weight == 0) | levels.ends
    share = (steps - steps.floor()).clamp(0.01, 0.99)
    logit = ((share - LOW) / (HIGH - share)).log().requires_grad_()
    optimizer = torch.optim.Adam([logit], LEARNING_RATE)

    def on_grid(up: Tensor) -> Tensor:
        return torch.where(fixed, steps.round(), (steps.floor() + up).clamp(levels.low, levels.high)) * scale

    for index in range(STEPS):
        batch = torch.randint(len(read), (min(BATCH, len(read)),), generator=generator)
        up = (torch.sigmoid(logit) * (HIGH - LOW) + LOW).clamp(0, 1)
        error = functional.mse_loss(_output(layer, on_grid(up), read[batch]), expected[batch]) * len(weight)
        optimizer.zero_grad()
        (error + _regularisation(up, index / STEPS)).backward()
        optimizer.step()
    return on_grid((logit.detach() > 0).to(weight.dtype))


def _regularisation(up: Tensor, done: float) -> Tensor:
    """Pulls every share to 0 or 1, more sharply as training proceeds."""
    if done < WARM_UP:
        return up.new_zeros(())
    power = 20 - 18 * (done - WARM_UP) / (1 - WARM_UP)
    return REGULARISATION * (1 - (2 * up - 1).abs() ** power).sum()


def _output(layer: WeightedLayer, weight: Tensor, read: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(read, weight, layer.bias)
    return layer._conv_forward(read, weight, layer.bias)
