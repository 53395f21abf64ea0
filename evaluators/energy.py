"""Energy of an inference, by the machine's own counters."""

from __future__ import annotations

import statistics

from ..core.errors import EvaluationError
from ..core.measurement import Measurement
from ..core.metrics import METRICS, metrics_named
from ..core.statistics import quantile_interval
from ..hardware_profiles.bench.energy import energy_meter
from ..hardware_profiles.cards.target import Target
from .evaluator import Context, Evaluator, LoweredCandidate, needed
from .registry import register

SECONDS, REPEATS = 2.0, 9
"""Running time of a measurement, and the number of equal parts that its interval is made of."""


@register
class Energy(Evaluator):
    """Joules of one batch: what the counter rose by while the artifact ran again and again, over the runs.

    The counter covers the whole package or GPU, idle parts and other processes too; a quiet machine is assumed.
    """

    name = "energy"
    metrics = metrics_named("energy_j")
    phases = ("timed",)
    on_request = True
    source = "bench"

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        why = "energy needs an artifact and a bench"
        artifact, bench = needed(lowered.artifact, why), needed(context.bench, why)
        meter, joules = bench.energy(artifact.path, SECONDS / REPEATS, REPEATS)
        low, high = quantile_interval(joules)
        unit = METRICS["energy_j"].unit
        return [Measurement("energy_j", statistics.median(joules), low, high, unit, REPEATS, meter)]

    def refusal(self, target: Target) -> str | None:
        if (reason := super().refusal(target)) is not None or target.remote:
            return reason
        try:
            energy_meter(target.runtime)
        except EvaluationError as error:
            return str(error)
        return None
