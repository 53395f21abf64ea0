"""The uncompressed model on the target: what every candidate is compared with."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ...compression.packing.packed_file import save_packed
from ...core.measurement import Measurement
from ...evaluators.accuracy import score
from ...evaluators.evaluator import Context, LoweredCandidate, Reference
from ...evaluators.registry import measure
from ...hardware_profiles.bench.timer import Timer
from ...hardware_profiles.runtimes.base import Artifact
from ...spaces.policies.candidate import Candidate
from ...spaces.policies.policy import Policy

QUIET_SECONDS = 1.0


def lower_reference(context: Context, folder: Path) -> Artifact:
    """Write the uncompressed model's artifact into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    candidate = Candidate(Policy(), context.workload.model.eval())
    path = folder / f"model{context.runtime.suffix}"
    return context.runtime.lower(candidate, context.workload.example_input, context.target, path)


def measure_reference(context: Context, artifact: Artifact, bench: Timer) -> list[Measurement]:
    """Everything measured of the uncompressed model, on the machine before any worker starts."""
    candidate = Candidate(Policy(), context.workload.model.eval())
    lowered = LoweredCandidate(
        candidate, artifact, save_packed(candidate, artifact.path.with_name("packed.safetensors"))
    )
    return measure(lowered, replace(context, bench=bench, timing_seconds=QUIET_SECONDS), "counted", "timed", "scored")


def with_scores(context: Context, artifact: Artifact, latency_ms: float) -> Reference:
    """The reference with its scores on the search-validation split, which accuracy drops are paired with."""
    started = time.monotonic()
    scores = score(artifact, context.workload.validation, context)
    return Reference(artifact, latency_ms, validation=scores, scoring_seconds=time.monotonic() - started)


def with_test_scores(context: Context, reference: Reference) -> Reference:
    """The reference with its scores on the test split too."""
    return replace(reference, test=score(reference.artifact, context.workload.test, context))
