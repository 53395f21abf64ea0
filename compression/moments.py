"""First and second moments of the inputs or outputs of layers, over the calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.hooks import removed_after

Module = TypeVar("Module", bound=nn.Module)


@dataclass
class Moments:
    """Sums over every sample and position, in float64.

    Attributes:
        count: how many vectors were added.
        total: their sum, shape [channels].
        gram: the sum of their outer products, shape [channels, channels].
    """

    count: int
    total: Tensor
    gram: Tensor

    @property
    def mean(self) -> Tensor:
        """Shape [channels]."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Shape [channels, channels]."""
        return self.gram / self.count - torch.outer(self.mean, self.mean)


@torch.no_grad()
def moments_of(
    model: nn.Module, layers: Iterable[Module], batches: Iterable[Batch], side: Literal["read", "made"]
) -> Mapping[Module, Moments]:
    """Moments of the inputs ("read") or outputs ("made") of convolutions and linear layers of `model`, which ends in eval mode.

    Args:
        batches: inputs of the model, shape [batch, ...].
    """
    found: dict[Module, Moments] = {}

    def watch(module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows = _vectors(module, inputs[0] if side == "read" else output).double()
        added = Moments(len(rows), rows.sum(0), rows.T @ rows)
        if module in found:
            before = found[module]
            added = Moments(before.count + added.count, before.total + added.total, before.gram + added.gram)
        found[module] = added

    hooks = [layer.register_forward_hook(watch) for layer in layers]
    with removed_after(hooks):
        for batch in batches:
            model.eval()(batch)
    return found


def _vectors(module: nn.Module, tensor: Tensor) -> Tensor:
    """[samples and positions, channels]."""
    return tensor.flatten(0, -2) if isinstance(module, nn.Linear) else tensor.transpose(0, 1).flatten(1).T
