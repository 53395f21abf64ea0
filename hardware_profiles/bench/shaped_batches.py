"""Latency at several shapes of the inputs: a batch of each, and the timing of their weighted mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtimes.base import BindingSession, Session
from .blocks import Run
from .paired_timing import Loads, PairedTiming, Percentile, ShapeTiming


@dataclass(frozen=True)
class ShapedBatch:
    """A batch that is timed.

    Attributes:
        shape: how measurements call its shape; "" where there is only one.
        weight: what its latency counts in the mean.
        inputs: by name, each [batch, ...].
    """

    shape: str
    weight: float
    inputs: Mapping[str, np.ndarray]


def weighted_mean(values: Sequence[float], batches: Sequence[ShapedBatch]) -> float:
    """The mean of a value of each batch, by the batches' weights."""
    return sum(v * b.weight for v, b in zip(values, batches, strict=True)) / sum(b.weight for b in batches)


def mean_timing(timings: Sequence[PairedTiming], batches: Sequence[ShapedBatch]) -> PairedTiming:
    """The timing of the weighted mean of several batches' latencies; that of a single batch is itself.

    The speed-up is the reference's weighted mean over the candidate's, a ratio of times: not the mean of the ratios, which would
    let a fast run at a small shape outweigh a slow one at a large shape. Its interval has every shape at the same end of its own,
    because the shapes run on the same loads of the files.
    """
    if len(batches) == 1:
        return timings[0]
    references = [timing.reference_ms for timing in timings]
    reference_ms = weighted_mean(references, batches)

    def over(bound: str) -> float:
        return reference_ms / weighted_mean(
            [timing.reference_ms / getattr(timing, bound) for timing in timings], batches
        )

    candidates = [timing.reference_ms / timing.speedup for timing in timings]
    candidate_ms = weighted_mean(candidates, batches)
    widths = [timing.half_width * own / candidate_ms for timing, own in zip(timings, candidates, strict=True)]
    return PairedTiming(
        speedup=over("speedup"),
        low=over("low"),
        high=over("high"),
        candidate_ms=candidate_ms,
        reference_ms=reference_ms,
        half_width=weighted_mean(widths, batches),
        pairs=min(timing.pairs for timing in timings),
        noisy=any(timing.noisy for timing in timings),
        percentiles={percent: _mean_percentile(timings, batches, percent) for percent in timings[0].percentiles},
        runs=sum(timing.runs for timing in timings),
        shapes=tuple(ShapeTiming(b.shape, b.weight, timing) for timing, b in zip(timings, batches, strict=True)),
    )


def _mean_percentile(timings: Sequence[PairedTiming], batches: Sequence[ShapedBatch], percent: int) -> Percentile:
    found = [timing.percentiles[percent] for timing in timings]
    value, low, high = (
        weighted_mean([getattr(each, bound) for each in found], batches) for bound in ("value", "low", "high")
    )
    return Percentile(value, low, high)


def runners(sessions: Sequence[Session], batch: ShapedBatch) -> Loads:
    """Runs of one batch, of several loads of a file."""
    return [runner(session, batch.inputs) for session in sessions]


def runner(session: Session, inputs: Mapping[str, np.ndarray]) -> Run:
    """A run of one batch, which is where the runtime reads it if it can be."""
    if isinstance(session, BindingSession):
        return session.bound(inputs)
    return lambda: session.run(inputs)
