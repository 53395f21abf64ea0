"""What one output of a model means: logits or probabilities of classes along some axis, or values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class OutputKind:
    """How outputs [batch, ...] of a workload's model are compared and averaged.

    Attributes:
        class_axis: the axis that the classes are along; None where the outputs are values, as in regression.
        are_probabilities: whether classes have probabilities, not logits; log-probabilities are logits too.
        variance: of values, over samples and positions, shape [channels, 1, ...]; None is 1.
        weight: of this output among several of one model, in the damage and in distillation.
    """

    class_axis: int | None = 1
    are_probabilities: bool = False
    variance: Tensor | None = None
    weight: float = 1.0

    @property
    def words(self) -> str:
        """The kind in a few words."""
        if self.class_axis is None:
            return "values"
        return f"{'probabilities' if self.are_probabilities else 'logits'} of classes along axis {self.class_axis}"

    def logits(self, outputs: Tensor) -> Tensor:
        """Outputs of classes as logits [batch x positions, classes]."""
        assert self.class_axis is not None, "values have no classes"
        rows = outputs.movedim(self.class_axis, -1).flatten(0, -2)
        return rows.clamp_min(torch.finfo(rows.dtype).tiny).log() if self.are_probabilities else rows

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference of values, in units of the teacher's variance."""
        return self._gaps(student, teacher).mean()

    def damage(self, found: Tensor, expected: Tensor) -> Tensor:
        """How far outputs [batch, ...] are from the `expected` ones, sample by sample, shape [batch], in double precision.

        Of classes it is KL(expected || found) in nats, the mean over positions; of values one over the signal-to-noise ratio.
        """
        found, expected = found.double(), expected.double()
        if self.class_axis is None:
            return self._gaps(found, expected).reshape(len(found), -1).mean(1)
        wanted, had = (self.logits(outputs).log_softmax(-1) for outputs in (expected, found))
        nats = functional.kl_div(had, wanted, reduction="none", log_target=True).sum(-1).clamp_min(0)
        return nats.reshape(len(found), -1).mean(1)

    def mean(self, outputs: Sequence[Tensor]) -> Tensor:
        """The mean of models' outputs: of probabilities where there are classes, as logits unless the outputs are probabilities."""
        stacked = torch.stack(list(outputs))
        if self.class_axis is None or self.are_probabilities:
            return stacked.mean(0)
        return stacked.log_softmax(dim=self.class_axis + 1).logsumexp(dim=0) - math.log(len(outputs))

    def _gaps(self, found: Tensor, expected: Tensor) -> Tensor:
        gaps = (found - expected).square()
        return gaps if self.variance is None else gaps / self.variance.to(gaps.device)


LOGITS = OutputKind()
"""Logits [batch, classes, ...], the outputs that cross-entropy reads."""
