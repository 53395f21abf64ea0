"""A study opened to be searched: made, or seen to be the one it was; its uncompressed model measured once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.errors import StoreError, WorkloadError, describe_exception
from ..core.interrupts import raise_if_interrupted
from ..core.measurement import Measurement
from ..evaluators.evaluator import Reference
from ..hardware_profiles.runtimes.base import Artifact
from ..spaces.policies.candidate import Candidate
from ..spaces.policies.policy import Policy
from ..studies.store.executed import KIND as PRECISIONS
from ..studies.store.store import Store
from ..workloads.load import workload_fingerprint
from .time_budget import TimeBudget
from .trials.baseline import lower_reference, measure_reference, with_scores
from .trials.kept_files import PRECISIONS_FILE, keep, keep_precisions
from .trials.prepared_study import PreparedStudy
from .trials.worker import Stage

CONFIRMING_SECONDS = 3.0
"""Seconds that timing a point of the front again takes at the end, with the loading of its artifact."""


def open_study(prepared: PreparedStudy, store: Store) -> None:
    """Store a new study, or take up one of that name under the study file as it is now.

    Raises:
        StoreError: the database holds a study of that name that is not this one.
    """
    spec = prepared.spec
    fingerprint = workload_fingerprint(prepared.context.workload)
    if not store.has_study(spec.study):
        machine, versions = prepared.measured_with()
        store.create_study(spec, fingerprint, versions, machine)
        return
    record = store.update_spec(spec)
    store.set_remark(spec.study, None)  # of an earlier run
    if record.workload_fingerprint != fingerprint:
        raise StoreError(
            f"study {spec.study!r} was searched with another model or other data of workload "
            f"{spec.workload!r}; give the study another name"
        )


def open_reference(prepared: PreparedStudy, store: Store, folder: Path) -> Reference:
    """The uncompressed model, measured when the study was new and read back ever after.

    Args:
        folder: that its artifact is in, or will be.

    Raises:
        StoreError: the study's latencies were measured, and its target now predicts them, or the other way round.
        WorkloadError: the model cannot be measured; no candidate could be compared with it.
    """
    context, study = prepared.context, prepared.spec.study
    path = folder / f"model{context.runtime.suffix}"
    baseline = store.get_study(study).baseline
    # A file without a baseline is another study's leftover under the same name.
    artifact = Artifact.of(path) if baseline and path.is_file() else lower_reference(context, folder)
    _refuse_mixed_latencies(prepared, baseline)
    if not baseline:
        measurements = _measure(prepared, artifact, folder)
        store.set_baseline(study, measurements, prepared.target.name)
        baseline = {measurement.name: measurement for measurement in measurements}
    return with_scores(context, artifact, baseline["latency_ms"].value)


def stage_of_baseline(
    prepared: PreparedStudy, reference: Reference, policy: Policy, baseline: Mapping[str, Measurement]
) -> Stage:
    """What was found of the uncompressed model when the study began, as the stage of a trial with its `policy`."""
    candidate = Candidate(policy, prepared.context.workload.model)
    folder = reference.artifact.path.parent
    files = keep(candidate, reference.artifact, folder)
    if (precisions := folder / PRECISIONS_FILE).is_file():  # gone with its folder, or never there in an old study
        files[PRECISIONS] = Artifact.of(precisions)
    return Stage("scored", measurements=list(baseline.values()), artifacts=files)


def time_budget(prepared: PreparedStudy, reference: Reference, started: float) -> TimeBudget:
    """The seconds of a run that began at `started`, by `time.monotonic()`."""
    workload = prepared.context.workload
    scoring = reference.scoring_seconds * len(workload.test) / len(workload.validation)
    return TimeBudget(prepared.spec.budget.timeout_s, started, CONFIRMING_SECONDS + scoring)


def _measure(prepared: PreparedStudy, artifact: Artifact, folder: Path) -> list[Measurement]:
    try:
        with prepared.bench(artifact) as bench:
            measurements = measure_reference(prepared.context, artifact, bench)
            if not prepared.target.predict:  # this machine's are not the target's
                keep_precisions(bench.executed_precisions(artifact.path), folder)
            return measurements
    except BaseException as error:  # the workload's metric or loss may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"the uncompressed model cannot be measured: {describe_exception(error)}") from error


def _refuse_mixed_latencies(prepared: PreparedStudy, baseline: Mapping[str, Measurement]) -> None:
    """See that a study continues as it began: with measured latencies, or with predicted ones."""
    if baseline and baseline["latency_ms"].is_predicted != prepared.target.predict:
        had, has = ("predicted", "measured") if baseline["latency_ms"].is_predicted else ("measured", "predicted")
        raise StoreError(
            f"study {prepared.spec.study!r} has {had} latencies and its target's card now asks for {has} ones, "
            "which no front may mix; give the study another name"
        )
