"""The uncompressed model on the target: what every candidate is compared with."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...compression.packing.packed_file import save_packed
from ...core.measurement import METRICS, Measurement
from ...evaluators.accuracy import Accuracy, score
from ...evaluators.counts import Complexity
from ...evaluators.evaluator import Context, LoweredCandidate, Reference
from ...evaluators.latency import latency_measurements, throughput
from ...evaluators.on_request import requested
from ...evaluators.predicted_latency import predicted_measurements
from ...evaluators.size import ArtifactSize, packed_size
from ...hardware_profiles.bench.timer import Timer
from ...hardware_profiles.cards.target import Target
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


def measure_reference(
    context: Context, artifact: Artifact, bench: Timer, metrics: Iterable[str] = ()
) -> list[Measurement]:
    """Everything measured of the uncompressed model, on the machine before any worker starts.

    Its speed-up is measured too, against itself: an interval that leaves 1 out says the machine is not fit to measure on.

    Args:
        metrics: that the study names; some are measured only then.
    """
    lowered = LoweredCandidate(Candidate(Policy(), context.workload.model.eval()), artifact)
    return [
        *(counted for counted in Complexity().evaluate(lowered, context) if counted.name != "packed_bytes"),
        packed_size(save_packed(lowered.candidate, artifact.path.with_name("packed.safetensors"))),
        *ArtifactSize().evaluate(lowered, context),
        *Accuracy().evaluate(lowered, context),
        *(_predicted(context.target) if context.target.predict else _timed(context.target, artifact, bench)),
        *(m for evaluator in requested(metrics) for m in evaluator.evaluate(lowered, replace(context, bench=bench))),
    ]


def _timed(target: Target, artifact: Artifact, bench: Timer) -> list[Measurement]:
    latency_ms, low, high, blocks = bench.time_reference(QUIET_SECONDS)
    against_itself = bench.time(artifact.path, QUIET_SECONDS)
    unit = METRICS["latency_ms"].unit
    latency = Measurement("latency_ms", latency_ms, low, high, unit, blocks, "median on the quiet machine")
    speedup, _, _, *percentiles = latency_measurements(against_itself, latency_ms, target)
    return [speedup, latency, throughput(latency, target), *percentiles]


def _predicted(target: Target) -> list[Measurement]:
    assert target.latency_table is not None  # the target's card was checked
    reference_ms = target.latency_table.reference_ms
    return predicted_measurements(reference_ms, reference_ms, target)


def with_scores(context: Context, artifact: Artifact, latency_ms: float) -> Reference:
    """The reference with its scores on the search-validation split, which accuracy drops are paired with."""
    started = time.monotonic()
    scores = score(artifact, context.workload.validation, context)
    return Reference(artifact, latency_ms, validation=scores, scoring_seconds=time.monotonic() - started)


def with_test_scores(context: Context, reference: Reference) -> Reference:
    """The reference with its scores on the test split too."""
    return replace(reference, test=score(reference.artifact, context.workload.test, context))
