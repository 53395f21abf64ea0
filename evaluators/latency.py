"""Latency of the artifact, by the bench's paired protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..core.measurement import Measurement
from ..core.metrics import METRICS, at_shape, metric_of, metrics_named
from ..hardware_profiles.bench.paired_timing import PairedTiming
from ..hardware_profiles.bench.timer import Timer
from ..hardware_profiles.cards.target import Target
from ..hardware_profiles.runtimes.base import Artifact
from .evaluator import PREDICTABLE, Context, Evaluator, LoweredCandidate, needed
from .registry import register

PAIRED = "paired-median"
"""What the method of a figure of paired runs begins with; remarks on the machine follow after semicolons."""

UNCERTAIN_REMARK = "too noisy: the worse end counts"
"""The last remark of a figure that stayed uncertain."""


@register
class Latency(Evaluator):
    """Speed-up over the reference, milliseconds and throughput derived from it, and percentiles of single runs.

    A figure that is still uncertain after it was timed again counts as the worse end of its interval, for the front and for
    the sampler: what a busy machine made of a candidate is not taken for its speed.

    Of the reference itself the milliseconds are those of the quiet machine, and the speed-up is over itself: an interval that
    leaves 1 out says the machine is not fit to measure on.
    """

    name = "latency"
    metrics = metrics_named(*PREDICTABLE, "latency_p50_ms", "latency_p90_ms", "latency_p99_ms")
    phases = ("timed", "confirmed")
    source = "bench"

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        why = "latency needs an artifact and a bench"
        artifact, bench = needed(lowered.artifact, why), needed(context.bench, why)
        if context.reference is None:
            return _of_the_reference(artifact, bench, context)
        reference = context.reference
        known_ms = reference.latency_ms if reference.was_timed_here else math.inf
        timing = bench.time(artifact.path, context.timing_seconds, known_ms)
        measured = latency_measurements(timing, reference.latency_ms, context.target)
        return with_float32(measured, reference.over_float32)


def _of_the_reference(artifact: Artifact, bench: Timer, context: Context) -> list[Measurement]:
    latency_ms, low, high, blocks = bench.time_reference(context.timing_seconds)
    against_itself = bench.time(artifact.path, context.timing_seconds, latency_ms)
    unit = METRICS["latency_ms"].unit
    latency = Measurement("latency_ms", latency_ms, low, high, unit, blocks, "median on the quiet machine")
    speedup, _, _, *percentiles = latency_measurements(against_itself, latency_ms, context.target)
    return with_float32([speedup, latency, throughput(latency, context.target), *percentiles])


def latency_measurements(timing: PairedTiming, reference_ms: float, target: Target) -> list[Measurement]:
    """`speedup`, and what follows: `latency_ms` = the reference's quiet latency / speed-up, `throughput`, percentiles.

    Of an uncertain timing their values are the worse ends of their intervals. Of several shapes they are of the weighted mean, which
    figures at each follow.
    """
    counted = timing.conservative_speedup
    speedup = _paired("speedup", counted, timing.low, timing.high, PAIRED, timing)
    low, high = reference_ms / timing.high, reference_ms / timing.low
    latency = _paired("latency_ms", reference_ms / counted, low, high, f"{PAIRED} x quiet reference", timing)
    return [speedup, latency, throughput(latency, target), *_percentiles(timing), *_of_shapes(timing, reference_ms)]


def _of_shapes(timing: PairedTiming, reference_ms: float) -> Iterator[Measurement]:
    """Speed-up and milliseconds at each of several shapes, in the scale in which the reference's weighted mean is `reference_ms`."""
    for each in timing.shapes:
        own, own_ms = each.timing, reference_ms * each.timing.reference_ms / timing.reference_ms
        counted, how = own.conservative_speedup, f"{PAIRED}, weight {each.weight:g} in the mean"
        yield _paired(at_shape("speedup", each.shape), counted, own.low, own.high, how, own)
        low, high = own_ms / own.high, own_ms / own.low
        yield _paired(at_shape("latency_ms", each.shape), own_ms / counted, low, high, f"{how} x quiet reference", own)


def remarks_on_timing(measurements: Mapping[str, Measurement]) -> list[str]:
    """What the bench noted of the machine while it timed a trial: how long it waited, a clock that moved, heat.

    That a figure is uncertain is said only after one of these: reports mark every noisy figure.
    """
    speedup = measurements.get("speedup")
    remarks = speedup.method.split("; ")[1:] if speedup is not None and speedup.method.startswith(PAIRED) else []
    return [] if remarks == [UNCERTAIN_REMARK] else remarks


def with_float32(measured: list[Measurement], over_float32: Measurement | None = None) -> list[Measurement]:
    """The measurements with `speedup_float32`, which follows from the first, `speedup`, and from the reference's own.

    The errors of both are independent: on a logarithmic scale their squares add.

    Args:
        over_float32: the reference's own; None where it is the uncompressed model in float32.
    """
    speedup, *others = measured
    if over_float32 is None:
        return [speedup, *others[:2], replace(speedup, name="speedup_float32"), *others[2:]]
    value = speedup.value * over_float32.value
    down, up = (
        math.hypot(*(math.log(getattr(m, bound) / m.value) for m in (speedup, over_float32)))
        for bound in ("low", "high")
    )
    noisy, n = speedup.noisy or over_float32.noisy, min(speedup.n, over_float32.n)
    method = "speedup x the reference's speedup_float32"
    found = Measurement(
        "speedup_float32", value, value / math.exp(down), value * math.exp(up), speedup.unit, n, method, noisy
    )
    return [speedup, *others[:2], found, *others[2:]]


def throughput(latency: Measurement, target: Target) -> Measurement:
    """Samples a second from the latency of one batch in each stream."""
    samples = target.batch * target.streams
    value, low, high = (samples * 1e3 / bound for bound in (latency.value, latency.high, latency.low))
    unit = METRICS["throughput"].unit
    method = latency.method if latency.is_predicted else "samples / latency_ms"
    return Measurement("throughput", value, low, high, unit, latency.n, method, latency.noisy)


def _paired(name: str, value: float, low: float, high: float, how: str, timing: PairedTiming) -> Measurement:
    reading = timing.conditions.reading
    remarks = [*timing.conditions.remarks, *([UNCERTAIN_REMARK] if timing.is_uncertain else [])]
    method = "; ".join([f"{how} at {reading}" if reading else how, *remarks])
    return Measurement(name, value, low, high, METRICS[metric_of(name)].unit, timing.pairs, method, timing.noisy)


def _percentiles(timing: PairedTiming) -> list[Measurement]:
    return [
        Measurement(f"latency_p{percent}_ms", p.value, p.low, p.high, "ms", timing.runs, "single runs of one timing")
        for percent, p in timing.percentiles.items()
    ]
