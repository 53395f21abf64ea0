"""GPTQ: weights rounded one input at a time, the error of each made up for by the inputs that are still to be rounded.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323. Layers
are rounded in the order they run, each on the inputs that the already quantized layers before it produce.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...core.batch import device_of_model
from ...spaces.models.layers import layer_at
from ...spaces.policies.candidate import QuantParams
from ...spaces.policies.policy import Policy
from ...workloads.workload import MapDataset
from .fake_quantize import PARAMETRIZED, fake_quantized
from .layer_runs import calibration_inputs, in_execution_order, inputs_and_outputs
from .weight_grids import GroupedWeight, WeightGrid

DAMPING = 0.01
"""This share of the Hessian's mean diagonal is added to it, as in the paper (section 3.3, step 3)."""

BLOCK = 128
"""The number of inputs after which the others catch up (section 3.3, step 2): a multiple of every group size."""


@torch.no_grad()
def round_with_feedback(
    model: nn.Module, policy: Policy, grids: Mapping[str, QuantParams], calibration: MapDataset
) -> None:
    """Round every quantized weight of linear layers in `policy`, in place; zeros stay zero, other layers stay as they are.

    Args:
        model: float32, batch-norm folded.
        grids: layer -> quantization parameters of its input.
    """
    inputs = calibration_inputs(calibration, device_of_model(model))
    quantized = {name for name, layer in policy.layers.items() if layer.has_weight_grid}
    linear = {name for name in quantized if isinstance(model.get_submodule(name), nn.Linear)}
    with fake_quantized(model, policy, grids):
        for name in in_execution_order(model, inputs, linear):
            layer = layer_at(model, name)
            stored, grid = layer.get_parameter(f"{PARAMETRIZED}.original"), layer.get_submodule(f"{PARAMETRIZED}.0")
            assert isinstance(grid, WeightGrid)
            read, _ = inputs_and_outputs(model, name, inputs)
            stored.data = rounded(stored.detach(), grid, hessian(read))


def hessian(read: Tensor) -> Tensor:
    """That of a linear layer's squared output error in the weights of any of its outputs: X^T X of its inputs [..., in], float64."""
    rows = read.flatten(0, -2).double()
    return rows.T @ rows


def rounded(weight: Tensor, grid: WeightGrid, second: Tensor) -> Tensor:
    """`weight` [out, in] on `grid`, such that outputs change little.

    The weights that define a scale stay at the end of their range.

    Args:
        second: Hessian [in, in] of the output error.
    """
    factor, rest, columns = _inverse_factor(second), weight.double(), weight.shape[1]
    size = grid.size if isinstance(grid, GroupedWeight) else columns
    group = _Group(grid, weight[:, :size], 0)
    for start in range(0, columns, BLOCK):
        block, errors = slice(start, min(start + BLOCK, columns)), []
        for column in range(block.start, block.stop):
            if column == group.first + size:  # its scale is that of its weights as they are by now
                inputs = slice(column, column + size)
                group = _Group(grid, torch.where(weight[:, inputs] == 0, 0, rest[:, inputs].float()), column)
            found = group.rounded(column, rest[:, column])
            errors.append((rest[:, column] - found) / factor[column, column])
            rest[:, column] = found
            rest[:, column + 1 : block.stop] -= errors[-1].outer(factor[column, column + 1 : block.stop])
        rest[:, block.stop :] -= torch.stack(errors, 1) @ factor[block, block.stop :]
    return rest.to(weight.dtype)


class _Group:
    """Neighbouring inputs whose scales are found together, from their weights [out, inputs]; `first` is the number of the first."""

    def __init__(self, grid: WeightGrid, weight: Tensor, first: int) -> None:
        self.first, self.levels, self.nearest = first, grid.levels(weight), grid(weight)
        self.fixed = self.levels.ends | (weight == 0)

    def rounded(self, column: int, weight: Tensor) -> Tensor:
        """The weights of one input [out]."""
        place = column - self.first
        levels = self.levels.of_input(place)
        return torch.where(self.fixed[:, place], self.nearest[:, place], levels.rounded(weight))


def _inverse_factor(second: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse (section 3.3, step 3)."""
    damped, diagonal = second.clone(), second.diagonal()
    # An input that is always zero has no error to make up for.
    damped.diagonal().add_(DAMPING * diagonal.mean() + (diagonal == 0).to(second.dtype))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
