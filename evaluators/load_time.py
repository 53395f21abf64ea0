"""Time from the artifact's file to its first outputs."""

from __future__ import annotations

import statistics

from ..core.measurement import Measurement
from ..core.metrics import METRICS, metrics_named
from .evaluator import Context, Evaluator, LoweredCandidate, needed
from .registry import register

REPEATS = 3
"""The number of fresh processes that load the artifact."""


@register
class LoadTime(Evaluator):
    """Milliseconds from the file to the first outputs of one batch: reading, the runtime's compilation, one inference.

    Each load is the first one of a fresh process on the bench's cores that has imported the runtime's library, and the file is
    not in memory. Starting the process and importing the library take as long for every model and are left out. The value is
    the median of three loads, the interval reaches from the fastest to the slowest.
    """

    name = "load time"
    metrics = metrics_named("load_ms")
    phases = ("timed",)
    on_request = True
    source = "bench"

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        why = "load time needs an artifact and a bench"
        artifact, bench = needed(lowered.artifact, why), needed(context.bench, why)
        loads = [seconds * 1e3 for seconds in bench.load_times(artifact.path, REPEATS)]
        unit, how = METRICS["load_ms"].unit, "median of first loads, fresh processes"
        return [Measurement("load_ms", statistics.median(loads), min(loads), max(loads), unit, len(loads), how)]
