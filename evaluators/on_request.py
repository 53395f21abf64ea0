"""Evaluators that cost bench time or special hardware, and so run only where a study asks for their metrics."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.errors import EvaluationError
from ..hardware_profiles.bench.energy import energy_meter
from ..hardware_profiles.bench.peak_memory import has_peak_memory
from ..hardware_profiles.cards.target import Target
from ..hardware_profiles.runtimes.registry import RUNTIMES
from .energy import Energy
from .evaluator import Evaluator
from .latency import Latency
from .memory import PeakMemory
from .predicted_latency import PredictedLatency

BENCHED = {*Latency.metrics, *PeakMemory.metrics, *Energy.metrics}
"""Metrics that need the target's machine."""


def requested(metrics: Iterable[str]) -> list[Evaluator]:
    """The evaluators here that make any of `metrics`."""
    wanted = set(metrics)
    evaluators: list[Evaluator] = [PeakMemory(), Energy()]
    return [evaluator for evaluator in evaluators if wanted.intersection(evaluator.metrics)]


def require_available(metric: str, target: Target) -> None:
    """See that a metric can be had of a target; of a remote one only what its card rules out, as its machine is not this one.

    Raises:
        EvaluationError: it cannot; the message says why.
    """
    if target.predict and metric in BENCHED.difference(PredictedLatency.metrics):
        raise EvaluationError(f"a latency table predicts {', '.join(PredictedLatency.metrics)} and nothing else")
    if metric in PeakMemory.metrics and RUNTIMES[target.runtime].gpu:
        raise EvaluationError(f"it is the host's memory, and {target.runtime} computes in the GPU's")
    if target.remote:
        return
    if metric in Energy.metrics:
        energy_meter(target.runtime)
    if metric in PeakMemory.metrics and not has_peak_memory():
        raise EvaluationError("peak memory is told by Linux only")
