"""What a search needs to know of a user's task: the model, its data and how it is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class MapDataset(Protocol):
    """A map-style data set of (input, target) pairs, such as `torch.utils.data.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, object]: ...


MetricFunction = Callable[[Tensor, Tensor], float]
"""(outputs [n, ...], targets [n, ...]) -> score, higher is better."""

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs [b, ...], targets [b, ...]) -> scalar loss."""


@dataclass(frozen=True)
class Workload:
    """A trained model, its data and its metric.

    Attributes:
        model: trained; slimfront copies it before changing anything.
        train: recovery is trained on this and nothing else.
        calibration: quantization ranges and batch-norm statistics come from this.
        validation: the search's accuracy is measured on this.
        test: scored once, at the end of a search and on export.
        example_input: one batch of one sample, shape [1, ...]; fixes shapes for tracing.
        metric: "top1", "top5", or a function of (outputs, targets), higher is better.
        loss: training loss; None is cross-entropy.
        name: how reports call it; filled in by the loader.
    """

    model: nn.Module
    train: MapDataset
    calibration: MapDataset
    validation: MapDataset
    test: MapDataset
    example_input: Tensor
    metric: str | MetricFunction = "top1"
    loss: LossFunction | None = None
    name: str = ""

    @property
    def loss_function(self) -> LossFunction:
        """The training loss, cross-entropy unless the workload brings its own."""
        return self.loss or torch.nn.functional.cross_entropy
