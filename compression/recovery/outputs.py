"""What a model's outputs mean to distillation: logits or probabilities of classes along some axis, or values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ...core.batch import device_of, moved
from ...workloads.workload import Workload
from ..batches import CALIBRATION_BATCH, input_batches

BATCHES = 10
"""How many calibration batches the outputs are judged from."""

LEAST_SHARE = 1e-3
"""A channel of values varies by at least this share of the mean variance, so that one that hardly varies does not outweigh all others."""


@dataclass(frozen=True)
class OutputKind:
    """How outputs [batch, ...] of a workload's model are compared and averaged.

    Attributes:
        class_axis: the axis that the classes are along; None where the outputs are values, as in regression.
        are_probabilities: whether classes have probabilities, not logits; log-probabilities are logits too.
        variance: of values, over samples and positions, shape [channels, 1, ...]; None is 1.
    """

    class_axis: int | None = 1
    are_probabilities: bool = False
    variance: Tensor | None = None

    def logits(self, outputs: Tensor) -> Tensor:
        """Outputs of classes as logits [batch x positions, classes]."""
        assert self.class_axis is not None, "values have no classes"
        rows = outputs.movedim(self.class_axis, -1).flatten(0, -2)
        return rows.clamp_min(torch.finfo(rows.dtype).tiny).log() if self.are_probabilities else rows

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference of values, in units of the teacher's variance."""
        gaps = (student - teacher).square()
        return (gaps if self.variance is None else gaps / self.variance.to(gaps.device)).mean()

    def mean(self, outputs: Sequence[Tensor]) -> Tensor:
        """The mean of models' outputs: of probabilities where there are classes, as logits unless the outputs are probabilities."""
        stacked = torch.stack(list(outputs))
        if self.class_axis is None or self.are_probabilities:
            return stacked.mean(0)
        return stacked.log_softmax(dim=self.class_axis + 1).logsumexp(dim=0) - math.log(len(outputs))


LOGITS = OutputKind()
"""Logits [batch, classes, ...], the outputs that cross-entropy reads."""


def output_kind(workload: Workload) -> OutputKind:
    """The kind of a workload's outputs, from its loss, the shape of a target, and what the model makes of the calibration split.

    Cross-entropy, the loss of a workload that brings none, reads classes along axis 1. Elsewhere classes are along the axis that
    whole-number targets lack, such as the last of [batch, positions, classes] for targets [batch, positions], or along axis 1 for
    targets that are probabilities themselves; everything else is values.
    """
    if workload.loss is None:
        return LOGITS
    with torch.random.fork_rng():  # training draws the same numbers with and without this look
        outputs, target = _outputs(workload), torch.as_tensor(workload.train[0][1])
    axis = _class_axis(outputs, target)
    if axis is None:
        return OutputKind(None, variance=_variance(outputs))
    return OutputKind(axis, _are_probabilities(outputs, axis))


@torch.no_grad()
def _outputs(workload: Workload) -> Tensor:
    """The model's outputs [samples, ...] on the first calibration batches."""
    batches = islice(input_batches(workload.calibration, CALIBRATION_BATCH), BATCHES)
    device = device_of(workload.example_input)
    return torch.cat([workload.model.eval()(moved(batch, device)).float().cpu() for batch in batches])


def _class_axis(outputs: Tensor, target: Tensor) -> int | None:
    """The axis of `outputs` [batch, ...] that a sample's target lacks; None where that is no axis of at least two classes."""
    if target.is_floating_point():
        like = outputs.ndim >= 2 and target.shape == outputs.shape[1:] and outputs.shape[1] > 1
        return 1 if like and _are_probabilities(target, 0) else None
    shape = outputs.shape
    lacking = (axis for axis in range(1, outputs.ndim) if target.shape == shape[1:axis] + shape[axis + 1 :])
    return next((axis for axis in lacking if shape[axis] > 1 and target.dtype != torch.bool), None)


def _are_probabilities(values: Tensor, axis: int) -> bool:
    sums = values.float().sum(axis)
    return bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _variance(outputs: Tensor) -> Tensor | None:
    """Of each channel, axis 1, over the rest; None where nothing varies."""
    variance = outputs.var(dim=[axis for axis in range(outputs.ndim) if axis != 1], correction=0)
    mean = float(variance.mean())
    if not mean > 0:
        return None
    return variance.clamp_min(LEAST_SHARE * mean).view(-1, *(1,) * (outputs.ndim - 2))
