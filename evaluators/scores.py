"""A model's outputs on one split, scored while they are made: nothing is kept of them but what the metric needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from ..compression.recovery.outputs import output_kinds
from ..core.errors import EvaluationError
from ..core.statistics import NORMAL_QUANTILE, percentile_interval
from ..workloads.metrics import is_higher_better
from ..workloads.workload import Workload
from .kept_outputs import Keeping, KeptOutputs, every
from .tallies import Column, Tallied, Tree, joined, length, size, tally_of

BLOCK_SAMPLES = 256
BLOCK_BYTES = 16 * 2**20
"""Batches are scored together until they are so many samples or bytes: one by one, small ones would take longer than running the model."""


@dataclass(frozen=True)
class Scores:
    """A model on one split, scored.

    Attributes:
        n: number of samples.
        metric: the workload's, of all samples.
        sign: 1 where a higher metric is better, else -1.
        losses: cross-entropy of each sample, in nats; None where it was not asked for.
        damage: how far the outputs are from a reference's, of each sample that those were kept of; None where it was not asked for.
        kept: the outputs, where they are to be compared with.
    """

    n: int
    metric: Tallied
    sign: int = 1
    losses: Tensor | None = None
    damage: Tensor | None = None
    kept: KeptOutputs | None = None

    @property
    def value(self) -> float:
        """The metric over all samples."""
        return self.metric.value

    def interval(self) -> tuple[float, float, str]:
        """95 % interval and its method: the Wilson score for hits, else a bootstrap."""
        return *self.metric.interval(), self.metric.method

    def drop_from(self, reference: Scores) -> tuple[float, float, float, str]:
        """How much worse this is than `reference` on the same samples, with its paired 95 % interval.

        For hits it is computed from counts: 20 of 400 is exactly 0.05, while the difference of two rounded rates is
        0.0500...04.
        """
        ours, theirs = self.metric, reference.metric
        if ours.hits is not None and theirs.hits is not None:
            drop = float((theirs.hits - ours.hits).sum()) / len(ours.hits)
            half = NORMAL_QUANTILE * float((theirs.hits - ours.hits).std()) / np.sqrt(len(ours.hits))
            return drop, drop - half, drop + half, "paired-normal"
        drop = self.sign * (theirs.value - ours.value)
        interval = percentile_interval(drop, self.sign * (theirs.resampled - ours.resampled))
        return drop + 0.0, *interval, f"paired-{ours.method}"


def joined_scores(parts: Sequence[Scores]) -> Scores:
    """The scores of a split from those of its consecutive parts; a metric that counts no hits has one part."""
    if len(parts) == 1:
        return parts[0]
    hits = np.concatenate([part.metric.hits for part in parts if part.metric.hits is not None])
    damage = [part.damage for part in parts if part.damage is not None]
    metric = replace(parts[0].metric, value=float(hits.mean()), hits=hits)
    return Scores(len(hits), metric, parts[0].sign, damage=torch.cat(damage) if damage else None)


class Scoring:
    """Scores the outputs of a split while they are made.

    Args:
        samples: of the split.
        keep: the folder to keep the outputs in; None keeps none.
        reference: what the damage is found against: scores whose outputs were kept. None finds none.
        has_losses: whether to find the cross-entropy of each sample.
    """

    def __init__(
        self,
        workload: Workload,
        samples: int,
        keep: Path | None = None,
        reference: Scores | None = None,
        has_losses: bool = False,
    ) -> None:
        self._metric = workload.metric
        self._tally = tally_of(workload.metric, samples)
        self._keeping = Keeping(keep, samples) if keep is not None else None
        self._before = reference.kept if reference is not None else None
        self._kinds = output_kinds(workload) if self._before is not None else None
        self._n = 0
        self._losses = Column(samples) if has_losses else None
        self._damage = Column(samples) if self._before is not None else None

    def scores(self, batches: Iterable[tuple[Tree, Tree]]) -> Scores:
        """The scores of batches of (outputs, targets).

        Raises:
            EvaluationError: the metric is no finite number.
        """
        try:
            for outputs, targets in _blocks(batches):
                self._add(outputs, targets)
        finally:
            if self._keeping is not None:
                self._keeping.close()
        metric = self._tally.result()
        if not np.isfinite(metric.value):
            raise EvaluationError(f"the workload's metric returned {metric.value}")
        return Scores(
            self._n,
            metric,
            sign=1 if is_higher_better(self._metric) else -1,
            losses=self._losses.values if self._losses is not None else None,
            damage=self._damage.values if self._damage is not None else None,
            kept=self._keeping.kept if self._keeping is not None else None,
        )

    def _add(self, outputs: Tree, targets: Tree) -> None:
        self._tally.add(outputs, targets)
        if self._losses is not None:
            self._losses.add(cross_entropies(outputs, targets))
        stop = self._n + length(outputs)
        if self._before is not None and self._kinds is not None and self._damage is not None:
            stride = self._before.stride
            own = pytree.tree_map(lambda leaf: every(leaf, self._n, stride), outputs)
            self._damage.add(self._kinds.damage(own, self._before.read(self._n, stop)))
        if self._keeping is not None:
            self._keeping.add(outputs)
        self._n = stop


def cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [n, classes] against class indices [n], sample by sample, in nats; the mean over positions."""
    losses = functional.cross_entropy(outputs, targets, reduction="none").double()
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


def _blocks(batches: Iterable[tuple[Tree, Tree]]) -> Iterator[tuple[Tree, Tree]]:
    """Batches of (outputs, targets) put together to blocks of `BLOCK_SAMPLES`, or fewer of `BLOCK_BYTES`."""
    held: list[tuple[Tree, Tree]] = []
    samples = most = 0
    for outputs, targets in batches:
        most = most or max(1, min(BLOCK_SAMPLES, BLOCK_BYTES * length(outputs) // max(1, size(outputs))))
        held.append((outputs, targets))
        samples += length(outputs)
        if samples >= most:
            yield _joined(held)
            samples = 0
            held.clear()
    if held:
        yield _joined(held)


def _joined(held: Sequence[tuple[Tree, Tree]]) -> tuple[Tree, Tree]:
    return joined([outputs for outputs, _ in held]), joined([targets for _, targets in held])
