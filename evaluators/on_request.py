"""Evaluators that cost bench time or special hardware, and so run only where a study asks for their metrics."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import EvaluationError
from ..hardware_profiles.energy import energy_meter
from ..hardware_profiles.peak_memory import has_peak_memory
from ..hardware_profiles.target import Target
from .energy import Energy
from .evaluator import Evaluator
from .memory import PeakMemory


def requested(metrics: Iterable[str]) -> list[Evaluator]:
    """The evaluators here that make any of `metrics`."""
    wanted = set(metrics)
    evaluators: list[Evaluator] = [PeakMemory(), Energy()]
    return [evaluator for evaluator in evaluators if wanted.intersection(evaluator.metrics)]


def require_available(metric: str, target: Target) -> None:
    """See that this machine can measure a metric.

    Raises:
        EvaluationError: it cannot; the message says why.
    """
    if metric in Energy.metrics:
        energy_meter(target.runtime)
    if metric in PeakMemory.metrics and not has_peak_memory():
        raise EvaluationError("peak memory is told by Linux only")
