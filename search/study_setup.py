"""A study opened to be searched: made, or seen to be the one it was; its reference chosen once, and its latency measured again."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..compression.recovery.learning_rate import LEARNING_RATE, FoundTraining, found_training
from ..compression.recovery.outputs import output_kinds
from ..compression.recovery.train import steps_of_an_epoch
from ..core.errors import StoreError
from ..core.measurement import Measurement
from ..core.metrics import FRACTION, Quality
from ..evaluators.evaluator import Context, Reference
from ..hardware_profiles.bench.timer import TIMING_SECONDS, Timer
from ..hardware_profiles.runtimes.base import Artifact
from ..spaces.knobs.recovery import RECOVERY_KIND
from ..spaces.models.channel_groups import ChannelGroup
from ..spaces.policies.candidate import Candidate
from ..spaces.policies.float_precision import FLOAT32
from ..spaces.policies.policy import Choice, Policy, Recovery
from ..studies.files.study_files import MODEL, PRECISIONS, REFERENCE, StudyFiles
from ..studies.store.records import TIMED, QuietMoment, ReferenceRecord, StudyRecord
from ..studies.store.store import Store
from ..studies.study_file.parts import AUTO, FOUND_ON_THE_MODEL
from ..studies.study_file.spec import StudySpec
from ..workloads.load import workload_fingerprint
from ..workloads.metrics import quality_of
from .events import Listener, Preparing, QuietMomentTaken, ReferenceNotMeasured, ReferenceSettled, TrainingFound
from .optuna.rescaled_trials import rescale_trials
from .time_budget import TimeBudget
from .trials.baseline import Measuring, lower_reference, measure_reference, with_scores
from .trials.free_deployments import choose_reference
from .trials.kept_files import PRECISIONS_FILE, keep
from .trials.prepared_study import PreparedStudy
from .trials.worker import Stage

FRACTIONS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Parts of an epoch that a preset may offer, where a whole one takes too much of a run's time."""

LEAST_STEPS = 50
"""Steps of the optimizer that a part of an epoch has at least, to be worth its evaluation."""

CONFIRMING_SECONDS = 3.0
"""Seconds that timing a point of the front again takes at the end, with the loading of its artifact."""

RESOLUTION = 0.015
"""The fraction by which a moment must be quieter for milliseconds to follow it: timings are not repeated more closely."""

MACHINE = ("cpu", "gpu", "flags")
"""The properties of a machine that latencies of one study share, with the runtime's version."""

TIMED_BY = ("runtime", "threads", "streams", "batch", "options", "shapes")
"""The keys of a target's card that latencies of one study share."""

RECOVERY_SHARE = 0.15
"""The share of a run's seconds that one recovery may take of those that a preset offers."""

BEGAN_BEFORE = "the study began with it, before free deployments were measured"
"""Why a study of an earlier version has its reference, in words."""


def open_study(
    prepared: PreparedStudy,
    store: Store,
    files: StudyFiles,
    root: str,
    folder: Path,
    tell: Listener,
    measuring: Measuring,
) -> tuple[PreparedStudy, Reference]:
    """Store a new study, or take up one of that name under the study file as it is now.

    The reference of a new study is chosen here, and what that settles of its space; later runs read it back and measure its
    latency again.

    Args:
        files: of the study, which lie at `root` from now on.
        folder: of the study's files at work, of which the reference's artifact is one.
        measuring: runs what the user's code takes part in.

    Returns:
        The study with its space settled, and its reference.

    Raises:
        StoreError: the database holds a study of that name that is not this one, whose files are elsewhere, or whose latencies
            were timed otherwise than its target's card now says, or predicted.
        StudyFileError: the reference that the study file asks for cannot be had.
        WorkloadError, SearchError: the uncompressed model cannot be measured; no candidate could be compared with it.
    """
    name = prepared.spec.study
    baseline = store.get_study(name).baseline if store.has_study(name) else {}
    if baseline:
        prepared = _continued(prepared, store)
    _store_study(prepared, store)
    if baseline:
        _refuse_mixed_latencies(prepared, baseline)
        _refuse_other_timing(prepared, store.get_study(name))
    files.settle(root)
    opened = (_known if baseline else _new)(prepared, store, files, folder / REFERENCE, tell, measuring)
    tell(Preparing("counting what channels and bits cost"))
    return opened


def _store_study(prepared: PreparedStudy, store: Store) -> None:
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


def _continued(prepared: PreparedStudy, store: Store) -> PreparedStudy:
    """A study as it began; one of before there was a choice of references gets the one that it had."""
    study = store.get_study(prepared.spec.study)
    reference = study.reference or _of_before(prepared, study)
    return prepared.settled(prepared.written.continuing(study.spec), reference.precision)


def _of_before(prepared: PreparedStudy, study: StudyRecord) -> ReferenceRecord:
    """The reference of a study that began before there was a choice."""
    moment = QuietMoment(study.created, study.baseline["latency_ms"])
    return ReferenceRecord(FLOAT32, f"{prepared.target.runtime} {FLOAT32}", BEGAN_BEFORE, moments=(moment,))


def _new(
    prepared: PreparedStudy, store: Store, files: StudyFiles, folder: Path, tell: Listener, measuring: Measuring
) -> tuple[PreparedStudy, Reference]:
    spec, workload = prepared.spec, prepared.context.workload
    tell(Preparing("timing and scoring the uncompressed model as its runtime may run it anyway"))
    record, paying, artifact = choose_reference(prepared, folder, measuring)
    measurements = measuring(partial(measure_reference, artifact=artifact, reference=record))
    _keep_reference(files, artifact)
    baseline = {measurement.name: measurement for measurement in measurements}
    record = replace(record, moments=(QuietMoment(datetime.now(UTC), baseline["latency_ms"]),))
    offered = paying if spec.space.preset != "none" else paying[:1]
    spec = _with_training(prepared, spec.with_float_precisions(offered), tell, measuring)
    prepared = prepared.settled(spec, record.precision)
    quality = quality_of(workload.metric, baseline["accuracy"].value)
    quality = replace(quality, outputs=output_kinds(workload).words)
    store.set_baseline(spec.study, measurements, prepared.target.name, record, prepared.spec, quality, _timed(prepared))
    tell(ReferenceSettled(record, is_new=True))
    return prepared, _scored(artifact, baseline["latency_ms"].value, record, measuring)


def _scored(artifact: Artifact, latency_ms: float, record: ReferenceRecord, measuring: Measuring) -> Reference:
    return measuring(partial(with_scores, artifact=artifact, latency_ms=latency_ms, record=record))


def _with_training(prepared: PreparedStudy, spec: StudySpec, tell: Listener, measuring: Measuring) -> StudySpec:
    """The spec with what it leaves open of a training found on the model, where it trains anything; and of the epochs that a preset
    offers, those that its time allows. A layout of images alone is not looked for."""
    open_keys = [key for key in FOUND_ON_THE_MODEL if getattr(spec.recovery, key) == AUTO]
    is_left_open = AUTO in (spec.recovery.learning_rate, spec.recovery.mixed_precision)
    if not is_left_open or not any(spec.space.offered(RECOVERY_KIND)):
        return spec
    recovery, workload, began = spec.recovery, prepared.context.workload, time.monotonic()
    tell(Preparing("trying how the model with half of its channels is best trained"))
    settings = recovery.settings(), prepared.groups, spec.seed, recovery.batch_size, open_keys
    found = measuring(partial(_training_found, settings=settings), "how the model is best trained cannot be found")
    spec = spec.with_training(found.rate, found.way)
    if RECOVERY_KIND not in prepared.written.space.model_fields_set:
        steps = steps_of_an_epoch(workload, recovery.settings(), recovery.batch_size)
        offered = affordable(spec.space.offered(RECOVERY_KIND), found.epoch_s, spec.budget.timeout_s, steps)
        spec = spec.with_epochs(offered)
    epochs = [float(epochs) for epochs in spec.space.offered(RECOVERY_KIND)]
    tell(TrainingFound(found, LEARNING_RATE in open_keys, epochs, time.monotonic() - began))
    return spec


def _training_found(
    context: Context, settings: tuple[Recovery, Sequence[ChannelGroup], int, int, Sequence[str]]
) -> FoundTraining:
    return found_training(context.workload, *settings)


def affordable(offered: Sequence[Choice], epoch_s: float, timeout_s: float | None, steps: int) -> list[Choice]:
    """The epochs of recovery that take no more than `RECOVERY_SHARE` of a run's seconds.

    The fewest that train at all stay where an epoch takes no more; else one of `FRACTIONS` replaces them: the largest that does not, or
    the smallest that has `LEAST_STEPS`. They also stay where an epoch has fewer steps than that.

    Args:
        steps: of an epoch.
    """
    within = math.inf if timeout_s is None else RECOVERY_SHARE * timeout_s
    if epoch_s > within and (part := _part_of_an_epoch(within / epoch_s, steps)) is not None:
        return [0, part]
    most = max(within / epoch_s, min(float(epochs) for epochs in offered if epochs))
    return [epochs for epochs in offered if float(epochs) <= most]


def _part_of_an_epoch(most: float, steps: int) -> float | None:
    """The largest of `FRACTIONS` that is at most `most`, else the smallest, of those with `LEAST_STEPS` of an epoch's `steps`."""
    parts = [part for part in FRACTIONS if part * steps >= LEAST_STEPS]
    return next((part for part in parts if part <= most), parts[-1]) if parts else None


def _reference_artifact(prepared: PreparedStudy, files: StudyFiles, folder: Path) -> Path | None:
    """The reference's artifact in the folder of files at work, from the store where only that has it; None where it is gone."""
    path, record = folder / f"model{prepared.context.runtime.suffix}", files.newest(None).get(MODEL)
    if path.is_file() and (record is None or Artifact.of(path).sha256 == record.sha256):
        return path
    if record is None or (kept := files.found(None, MODEL)) is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(kept, path))


def _keep_reference(files: StudyFiles, artifact: Artifact) -> None:
    """Have the artifact store hold the reference's artifact, which bundles hand out; the file at work stays."""
    files.put(None, MODEL, artifact.path, artifact.sha256, artifact.bytes, take=False)


def _known(
    prepared: PreparedStudy, store: Store, files: StudyFiles, folder: Path, tell: Listener, measuring: Measuring
) -> tuple[PreparedStudy, Reference]:
    context, study = prepared.context, store.get_study(prepared.spec.study)
    _refuse_other_metric(study, quality_of(context.workload.metric, study.baseline["accuracy"].value))
    record = study.reference or _of_before(prepared, study)
    store.put_reference(study.name, record)
    tell(ReferenceSettled(record, is_new=False))
    path = _reference_artifact(prepared, files, folder)
    lower = partial(lower_reference, folder=folder, precision=record.precision)
    artifact = measuring(lower) if path is None else Artifact.of(path)
    _keep_reference(files, artifact)
    reference = _scored(artifact, study.baseline["latency_ms"].value, record, measuring)
    if prepared.target.predict:
        return prepared, reference
    with prepared.bench(artifact) as bench:
        return prepared, quiet_moment(prepared, store, reference, bench, tell)


def quiet_moment(
    prepared: PreparedStudy, store: Store, reference: Reference, bench: Timer, tell: Listener
) -> Reference:
    """Measure the reference's latency at a moment when nothing else of the search runs.

    Where that is the quietest of the study so far, milliseconds of the whole study follow.

    Args:
        bench: its reference is this one.

    Returns:
        The reference with the latency that milliseconds are in the scale of.
    """
    study = store.get_study(prepared.spec.study)
    record, before = study.reference, study.baseline["latency_ms"]
    assert record is not None  # stored when the study was opened
    if (reason := _measured_elsewhere(prepared, study)) is not None:
        tell(ReferenceNotMeasured(reason))
        return replace(reference, was_timed_here=False)
    value, low, high, blocks = bench.time_reference(TIMING_SECONDS)
    now = replace(before, value=value, low=low, high=high, n=blocks)
    record = replace(record, moments=(*record.moments, QuietMoment(datetime.now(UTC), now)))
    is_quieter = now.value < before.value * (1 - RESOLUTION)
    follow = partial(rescale_trials, spec=prepared.spec)
    store.put_reference(study.name, record, now if is_quieter else None, follow)
    tell(QuietMomentTaken(before, now, is_quieter))
    return replace(reference, latency_ms=now.value) if is_quieter else reference


def _measured_elsewhere(prepared: PreparedStudy, study: StudyRecord) -> str | None:
    """Why the reference's latency of this moment does not belong to the study's others; None where it does."""
    machine, versions = prepared.measured_with()
    runtime = prepared.target.runtime
    known = {**study.machine, runtime: study.versions.get(runtime)}
    here = {**machine, runtime: versions.get(runtime)}
    other = [name for name in (*MACHINE, runtime) if here.get(name) != known.get(name)]
    return f"it was timed with another {' and '.join(other)}" if other else None


def stage_of_baseline(
    prepared: PreparedStudy, reference: Reference, policy: Policy, baseline: Mapping[str, Measurement]
) -> Stage:
    """What was found of the uncompressed model when the study began, as the stage of a trial with its `policy`."""
    candidate = Candidate(policy, prepared.context.workload.model)
    folder = reference.artifact.path.parent
    made = keep(candidate, reference.artifact, folder)
    if (precisions := folder / PRECISIONS_FILE).is_file():  # gone with its folder, or never there in an old study
        made[PRECISIONS] = Artifact.of(precisions)
    return Stage("scored", measurements=list(baseline.values()), artifacts=made)


def time_budget(prepared: PreparedStudy, reference: Reference, started: float) -> TimeBudget:
    """The seconds of a run that began at `started`, by `time.monotonic()`."""
    workload = prepared.context.workload
    scoring = reference.scoring_seconds * len(workload.test) / len(workload.validation)
    return TimeBudget(prepared.spec.budget.timeout_s, started, CONFIRMING_SECONDS + scoring)


def _refuse_other_metric(study: StudyRecord, now: Quality) -> None:
    """See that a study's accuracies go on being of one metric; which one an earlier version's were of is not known."""
    before = study.quality
    if before.metric not in (FRACTION.metric, now.metric) or (before != FRACTION and before.unit != now.unit):
        raise StoreError(
            f"study {study.name!r} has accuracies in {before.words} and its workload now has {now.words}; "
            "give the study another name"
        )


def _refuse_mixed_latencies(prepared: PreparedStudy, baseline: Mapping[str, Measurement]) -> None:
    """See that a study continues as it began: with measured latencies, or with predicted ones."""
    if baseline["latency_ms"].is_predicted != prepared.target.predict:
        had, has = ("predicted", "measured") if baseline["latency_ms"].is_predicted else ("measured", "predicted")
        raise StoreError(
            f"study {prepared.spec.study!r} has {had} latencies and its target's card now asks for {has} ones, "
            "which no front may mix; give the study another name"
        )


def _timed(prepared: PreparedStudy) -> dict[str, Any]:
    """What the target's card says of how latency is timed, as plain JSON values."""
    return prepared.target.model_dump(mode="json", include=set(TIMED_BY))


def _refuse_other_timing(prepared: PreparedStudy, study: StudyRecord) -> None:
    """See that latency is timed as when the study began; of one that an earlier version began that is not known."""
    now = _timed(prepared)
    before = study.machine.get(TIMED, now)
    for key in TIMED_BY:
        if (had := before.get(key, now[key])) != now[key]:
            raise StoreError(
                f"study {study.name!r} has latencies of {key} {had} and its target's card now says {now[key]}, "
                "which no front may mix; give the study another name"
            )
