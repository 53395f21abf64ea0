"""Latency by the table in the target's card, for a target that cannot be reached."""

from __future__ import annotations

from ..core.errors import EvaluationError
from ..core.measurement import PREDICTED, Measurement
from ..core.metrics import METRICS, metrics_named
from ..hardware_profiles.cards.target import Target
from ..hardware_profiles.profiling.prediction import calls_of, cost_units
from .evaluator import PREDICTABLE, Context, Evaluator, LoweredCandidate, needed
from .latency import throughput, with_float32
from .registry import register


@register
class PredictedLatency(Evaluator):
    """Speed-up, latency and throughput as the table says, with the interval of its error on policies it had not seen."""

    name = "predicted latency"
    metrics = metrics_named(*PREDICTABLE)
    phases = ("timed",)
    source = "table"

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        why = "predicting latency needs a latency table in the target's card"
        table = needed(context.target.latency_table, why)
        if context.reference is None:
            return predicted_measurements(table.reference_ms, table.reference_ms, context.target)
        example, candidate = (
            context.workload.example_input,
            needed(lowered.candidate, "predicting latency needs the model"),
        )
        reference = calls_of(context.workload.model, example)
        costs = cost_units(candidate.policy, calls_of(candidate.model, example), reference)
        if missing := table.missing(costs):
            raise EvaluationError(f"the target's latency table was fitted to no layers in {', '.join(missing)}")
        milliseconds = table.predict(costs)
        return predicted_measurements(milliseconds, table.reference_ms, context.target)


def predicted_measurements(latency_ms: float, reference_ms: float, target: Target) -> list[Measurement]:
    """What follows from a predicted latency; the uncompressed model's own is known, and its interval a point."""
    assert target.latency_table is not None  # the target's card was checked
    table = target.latency_table
    error = 0.0 if latency_ms == reference_ms else table.error_95
    method = f"{PREDICTED} by a latency table, median error {table.error:.1%}"
    speedup, n = reference_ms / latency_ms, table.policies
    low, high = latency_ms / (1 + error), latency_ms * (1 + error)
    latency = Measurement("latency_ms", latency_ms, low, high, METRICS["latency_ms"].unit, n, method)
    ratio = Measurement("speedup", speedup, reference_ms / high, reference_ms / low, METRICS["speedup"].unit, n, method)
    return with_float32([ratio, latency, throughput(latency, target)])
