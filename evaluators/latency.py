"""Latency of the artifact, by the bench's paired protocol."""

from __future__ import annotations

from ..errors import EvaluationError
from ..hardware_profiles.bench import PairedTiming
from ..measurement import METRICS, Measurement
from .evaluator import Context, Subject


class Latency:
    """Speed-up over the reference, and milliseconds derived from it.

    Attributes:
        seconds: the time budget of one timing; it ends earlier once the interval is narrow enough.
    """

    metrics = ("speedup", "latency_ms")
    needs_artifact = True

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds

    def evaluate(self, subject: Subject, context: Context) -> list[Measurement]:
        if subject.artifact is None or context.bench is None or context.reference is None:
            raise EvaluationError("latency needs an artifact, a bench and a reference")
        timing = context.bench.time(subject.artifact.path, self.seconds)
        return latency_measurements(timing, context.reference.latency_ms)


def latency_measurements(timing: PairedTiming, reference_ms: float) -> list[Measurement]:
    """`speedup` and `latency_ms` = the reference's quiet latency / speed-up."""
    return [
        Measurement(
            "speedup",
            timing.speedup,
            timing.low,
            timing.high,
            METRICS["speedup"].unit,
            timing.pairs,
            "paired-median",
            timing.noisy,
        ),
        Measurement(
            "latency_ms",
            reference_ms / timing.speedup,
            reference_ms / timing.high,
            reference_ms / timing.low,
            METRICS["latency_ms"].unit,
            timing.pairs,
            "paired-median x quiet reference",
            timing.noisy,
        ),
    ]
