"""Latency of the artifact, by the bench's paired protocol."""

from __future__ import annotations

from ..core.errors import EvaluationError
from ..core.measurement import METRICS, Measurement
from ..hardware_profiles.bench.paired_timing import PairedTiming
from ..hardware_profiles.cards.target import Target
from .evaluator import Context, LoweredCandidate


class Latency:
    """Speed-up over the reference, milliseconds and throughput derived from it, and percentiles of single runs.

    Attributes:
        seconds: the time budget of one timing; it ends earlier once the interval is narrow enough.
    """

    metrics: tuple[str, ...] = (
        "speedup",
        "latency_ms",
        "throughput",
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p99_ms",
    )
    needs_artifact = True

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        if lowered.artifact is None or context.bench is None or context.reference is None:
            raise EvaluationError("latency needs an artifact, a bench and a reference")
        timing = context.bench.time(lowered.artifact.path, self.seconds)
        return latency_measurements(timing, context.reference.latency_ms, context.target)


def latency_measurements(timing: PairedTiming, reference_ms: float, target: Target) -> list[Measurement]:
    """`speedup`, and what follows: `latency_ms` = the reference's quiet latency / speed-up, `throughput`, percentiles."""
    speedup = _paired("speedup", timing.speedup, timing.low, timing.high, "paired-median", timing)
    low, high = reference_ms / timing.high, reference_ms / timing.low
    latency = _paired("latency_ms", reference_ms / timing.speedup, low, high, "paired-median x quiet reference", timing)
    return [speedup, latency, throughput(latency, target), *_percentiles(timing)]


def throughput(latency: Measurement, target: Target) -> Measurement:
    """Samples a second from the latency of one batch in each stream."""
    samples = target.batch * target.streams
    value, low, high = (samples * 1e3 / bound for bound in (latency.value, latency.high, latency.low))
    unit = METRICS["throughput"].unit
    method = latency.method if latency.is_predicted else "samples / latency_ms"
    return Measurement("throughput", value, low, high, unit, latency.n, method, latency.noisy)


def _paired(name: str, value: float, low: float, high: float, method: str, timing: PairedTiming) -> Measurement:
    return Measurement(name, value, low, high, METRICS[name].unit, timing.pairs, method, timing.noisy)


def _percentiles(timing: PairedTiming) -> list[Measurement]:
    return [
        Measurement(f"latency_p{percent}_ms", p.value, p.low, p.high, "ms", timing.runs, "single runs of one timing")
        for percent, p in timing.percentiles.items()
    ]
