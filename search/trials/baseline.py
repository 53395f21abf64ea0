"""The uncompressed model on the target: what every candidate is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from ...compression.packing.packed_file import save_packed
from ...core.errors import WorkloadError, describe_exception
from ...core.interrupts import raise_if_interrupted
from ...core.machine.memory import give_back
from ...core.measurement import Measurement
from ...evaluators.accuracy import score
from ...evaluators.evaluator import Context, LoweredCandidate, Reference
from ...evaluators.registry import measure
from ...hardware_profiles.bench.bench import bench_cores
from ...hardware_profiles.bench.timer import TIMING_SECONDS, Timer
from ...hardware_profiles.runtimes.base import Artifact
from ...hardware_profiles.runtimes.lowered import lowered
from ...spaces.policies.candidate import Candidate
from ...spaces.policies.float_precision import FLOAT32, FloatPrecision
from ...spaces.policies.policy import Policy
from ...studies.store.records import ReferenceRecord
from ..cluster.timers import timer_of
from .kept_files import keep_precisions

T = TypeVar("T")

OUTPUTS = "outputs"
"""The folder of the reference's outputs on the search-validation split, next to its artifact."""

UNMEASURED = "the uncompressed model cannot be measured"


class Measuring(Protocol):
    """Runs what has to be found of the uncompressed model before the first trial: here, or in a process that may crash."""

    def __call__(self, measure: Callable[[Context], T], problem: str = UNMEASURED) -> T:
        """What `measure` returns of the workload on its target, without a bench or a reference.

        Args:
            problem: what errors begin with.

        Raises:
            WorkloadError: it raised something; the user's metric, loss and data may raise anything.
            SearchError: it ended its process.
        """
        ...


def measuring_here(context: Context) -> Measuring:
    """A `Measuring` in this process."""

    def measuring(measure: Callable[[Context], T], problem: str = UNMEASURED) -> T:
        try:
            return measure(context)
        except BaseException as error:  # as above
            raise_if_interrupted(error)
            raise WorkloadError(f"{problem}: {describe_exception(error)}") from error

    return measuring


def bench_of(context: Context, reference: Artifact) -> Timer:
    """A timer of the context's target, its reference the uncompressed model's artifact."""
    cores = bench_cores(context.target.threads)
    workload = context.workload
    return timer_of(context.target, reference.path, workload.example_input, cores, workload.dynamic_axes)


def uncompressed(context: Context, precision: FloatPrecision) -> Candidate:
    """The uncompressed model, its floats in a precision, as a candidate."""
    return Candidate(Policy(float_precision=precision), context.workload.model.eval())


def lower_reference(context: Context, folder: Path, precision: FloatPrecision = FLOAT32) -> Artifact:
    """Write the uncompressed model's artifact into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model{context.runtime.suffix}"
    candidate = uncompressed(context, precision)
    artifact = lowered(context.runtime, candidate, context.workload.example_input, context.target, path)
    give_back()
    return artifact


def measure_reference(context: Context, artifact: Artifact, reference: ReferenceRecord) -> list[Measurement]:
    """Everything measured of the reference, on the machine before any worker starts; how its layers ran is kept next to it."""
    with bench_of(context, artifact) as bench:
        measurements = _measured(context, artifact, bench, reference)
        if not context.target.predict:  # this machine's are not the target's
            keep_precisions(bench.executed_precisions(artifact.path), artifact.path.parent)
        return measurements


def _measured(context: Context, artifact: Artifact, bench: Timer, reference: ReferenceRecord) -> list[Measurement]:
    candidate, over_float32 = uncompressed(context, reference.precision), reference.over_float32
    lowered = LoweredCandidate(
        candidate, artifact, save_packed(candidate, artifact.path.with_name("packed.safetensors"))
    )
    timing = replace(context, bench=bench, timing_seconds=TIMING_SECONDS)
    measured = measure(lowered, timing, "counted", "timed", "scored")
    if over_float32 is None:
        return measured
    return [over_float32 if each.name == over_float32.name else each for each in measured]


def with_scores(context: Context, artifact: Artifact, latency_ms: float, record: ReferenceRecord) -> Reference:
    """The reference with its scores on the search-validation split, which accuracy drops are paired with; its outputs are kept next
    to the artifact, for the damage."""
    started = time.monotonic()
    scores = score(artifact, context.workload.validation, context, keep=artifact.path.with_name(OUTPUTS))
    seconds = time.monotonic() - started
    return Reference(
        artifact, latency_ms, scores, None, seconds, over_float32=record.over_float32, precision=record.precision
    )
