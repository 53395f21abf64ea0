"""Peak memory of the runtime's session."""

from __future__ import annotations

from ..core.measurement import Measurement
from ..core.metrics import metrics_named
from ..hardware_profiles.bench.peak_memory import has_peak_memory
from ..hardware_profiles.cards.target import Target
from ..hardware_profiles.runtimes.registry import RUNTIMES
from .evaluator import Context, Evaluator, LoweredCandidate, needed
from .registry import register


@register
class PeakMemory(Evaluator):
    """What loading the artifact and running it needs at its peak, in a fresh process on the bench's cores."""

    name = "peak memory"
    metrics = metrics_named("peak_memory_bytes")
    phases = ("timed",)
    on_request = True
    source = "bench"

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        why = "peak memory needs an artifact and a bench"
        artifact, bench = needed(lowered.artifact, why), needed(context.bench, why)
        peak = bench.peak_memory(artifact.path)
        return [Measurement.exact("peak_memory_bytes", peak, "growth of the peak resident set, one load")]

    def refusal(self, target: Target) -> str | None:
        if (reason := super().refusal(target)) is not None:
            return reason
        if RUNTIMES[target.runtime].gpu:
            return f"it is the host's memory, and {target.runtime} computes in the GPU's"
        return None if target.remote or has_peak_memory() else "only Linux reports peak memory"
