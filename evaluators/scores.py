"""Scoring outputs against targets, sample by sample where the metric allows it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..core.batch import Batch, joined, rows, taken
from ..core.errors import EvaluationError
from ..core.statistics import NORMAL_QUANTILE, bootstrap_interval, wilson_interval
from ..workloads.workload import TOP_K, MetricFunction


@dataclass(frozen=True)
class Scores:
    """A model's outputs on one split, scored.

    Attributes:
        outputs, targets: shape [n, ...].
        metric: "top1", "top5" or a function of (outputs, targets).
    """

    outputs: Batch
    targets: Batch
    metric: str | MetricFunction

    @property
    def hits(self) -> np.ndarray | None:
        """1 where a sample is right, shape [n]; None for a metric that is not a mean over samples."""
        if not isinstance(self.metric, str):
            return None
        assert isinstance(self.outputs, Tensor), "the workload was checked"
        assert isinstance(self.targets, Tensor), "the workload was checked"
        best = self.outputs.topk(TOP_K[self.metric], dim=1).indices
        return (best == self.targets.reshape(-1, 1)).any(dim=1).numpy().astype(np.float64)

    def value(self, chosen: np.ndarray | None = None) -> float:
        """The metric over all samples, or over those of the index array `chosen`.

        Raises:
            EvaluationError: a metric function did not return a finite number.
        """
        if (hits := self.hits) is not None:
            return float(hits.mean() if chosen is None else hits[chosen].mean())
        outputs, targets = (
            (self.outputs, self.targets)
            if chosen is None
            else (taken(self.outputs, chosen), taken(self.targets, chosen))
        )
        value = float(self.metric(outputs, targets))  # type: ignore[operator]
        if not np.isfinite(value):
            raise EvaluationError(f"the workload's metric returned {value}")
        return value

    def interval(self) -> tuple[float, float, str]:
        """95 % interval and its method: the Wilson score for hits, else the percentile bootstrap."""
        if (hits := self.hits) is not None:
            return *wilson_interval(int(hits.sum()), len(hits)), "wilson"
        return *bootstrap_interval(self.value, rows(self.outputs)), "bootstrap"

    def drop_from(self, reference: Scores) -> tuple[float, float, float, str]:
        """How much lower this scores than `reference` on the same samples, with its paired 95 % interval.

        For hits it is computed from counts: 20 of 400 is exactly 0.05, while the difference of two rounded rates is
        0.0500...04.
        """
        if (ours := self.hits) is not None and (theirs := reference.hits) is not None:
            drop = float((theirs - ours).sum()) / len(ours)
            half = NORMAL_QUANTILE * float((theirs - ours).std()) / np.sqrt(len(ours))
            return drop, drop - half, drop + half, "paired-normal"
        drop = reference.value() - self.value()
        return (
            drop,
            *bootstrap_interval(lambda chosen: reference.value(chosen) - self.value(chosen), rows(self.outputs)),
            "paired-bootstrap",
        )


def concatenate(parts: list[tuple[Batch, Batch]], metric: str | MetricFunction) -> Scores:
    """Scores over batches of (outputs, targets)."""
    outputs = joined([outputs for outputs, _ in parts])
    return Scores(outputs, joined([targets for _, targets in parts]), metric)
