"""Energy of an inference, by the machine's own counters."""

from __future__ import annotations

import statistics

from ..core.errors import EvaluationError
from ..core.measurement import METRICS, Measurement
from ..core.statistics import quantile_interval
from .evaluator import Context, LoweredCandidate

REPEATS = 9


class Energy:
    """Joules of one batch: what the counter rose by while the artifact ran again and again, over the runs.

    The counter covers the whole package or GPU, idle parts and other processes too; a quiet machine is assumed.

    Attributes:
        seconds: of running, in nine parts that the interval is made of.
    """

    metrics: tuple[str, ...] = ("energy_j",)
    needs_artifact = True

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        if lowered.artifact is None or context.bench is None:
            raise EvaluationError("energy needs an artifact and a bench")
        meter, joules = context.bench.energy(lowered.artifact.path, self.seconds / REPEATS, REPEATS)
        low, high = quantile_interval(joules)
        unit = METRICS["energy_j"].unit
        return [Measurement("energy_j", statistics.median(joules), low, high, unit, REPEATS, meter)]
