"""Peak memory of the runtime's session."""

from __future__ import annotations

from ..core.errors import EvaluationError
from ..core.measurement import Measurement
from .evaluator import Context, LoweredCandidate


class PeakMemory:
    """What loading the artifact and running it needs at its peak, in a fresh process on the bench's cores."""

    metrics: tuple[str, ...] = ("peak_memory_bytes",)
    needs_artifact = True

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        if lowered.artifact is None or context.bench is None:
            raise EvaluationError("peak memory needs an artifact and a bench")
        peak = context.bench.peak_memory(lowered.artifact.path)
        return [Measurement.exact("peak_memory_bytes", peak, "growth of the peak resident set, one load")]
