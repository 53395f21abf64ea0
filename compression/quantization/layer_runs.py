"""What layers read and make of calibration data, for steps that go through them one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.batch import Batch, rows, taken
from ...core.hooks import removed_after
from ...workloads.workload import MapDataset
from ..batches import input_batches

SAMPLES = 128
"""How many samples of the calibration split are read at most."""


def calibration_inputs(calibration: MapDataset, device: torch.device) -> list[Batch]:
    """Batches of the first `SAMPLES` inputs of the calibration split, each [batch, ...], on a device."""
    batches, left = [], SAMPLES
    for batch in input_batches(calibration, min(SAMPLES, len(calibration)), device):
        batches.append(taken(batch, slice(left)))
        left -= rows(batches[-1])
        if not left:
            break
    return batches


@torch.no_grad()
def in_execution_order(model: nn.Module, inputs: Sequence[Batch], layers: set[str]) -> list[str]:
    """`layers` in the order they first run; those that never run are left out."""
    order: dict[str, None] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: order.setdefault(name)) for name in layers
    ]
    with removed_after(hooks):
        model(inputs[0])
    return list(order)


@torch.no_grad()
def inputs_and_outputs(model: nn.Module, layer: str, inputs: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """What a layer reads and what it makes in all its runs over `inputs`, each [samples x runs, ...]."""
    read: list[Tensor] = []
    made: list[Tensor] = []

    def keep(_layer: nn.Module, arguments: tuple, output: Tensor) -> None:
        read.append(arguments[0])
        made.append(output)

    with model.get_submodule(layer).register_forward_hook(keep):
        for batch in inputs:
            model(batch)
    return torch.cat(read), torch.cat(made)
