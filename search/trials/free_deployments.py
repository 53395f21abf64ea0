"""The free deployments of the uncompressed model, measured before a study's first trial."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...core.errors import EvaluationError, LoweringError, StudyFileError, UserError
from ...core.measurement import Measurement
from ...evaluators.accuracy import accuracy_measurements, score
from ...evaluators.evaluator import Context
from ...evaluators.latency import latency_measurements
from ...evaluators.scores import Scores
from ...hardware_profiles.bench.timer import TIMING_SECONDS, Timer
from ...hardware_profiles.runtimes.base import Artifact
from ...spaces.knobs.quantization import FLOATS
from ...spaces.policies.float_precision import FLOAT32, FloatPrecision
from ...studies.analysis.free_deployments import choose, paying
from ...studies.store.records import FreeDeployment, ReferenceRecord
from .baseline import Measuring, bench_of, lower_reference
from .prepared_study import PreparedStudy

FREE = "free"
"""The folder of artifacts of the free deployments while they are measured, next to that of the reference."""


def choose_reference(
    prepared: PreparedStudy, folder: Path, measuring: Measuring
) -> tuple[ReferenceRecord, tuple[FloatPrecision, ...], Artifact]:
    """Measure the free deployments, and choose the study's reference among them.

    Where there is but one, nothing is measured here: it is the baseline.

    Args:
        folder: that the artifact of the chosen one is written to.
        measuring: runs what the user's code takes part in.

    Returns:
        The reference, the float precisions that pay for candidates, and the reference's artifact.

    Raises:
        StudyFileError: the study file asks for one that the target does not have.
        WorkloadError, SearchError: as `Measuring`.
    """
    spec, deployments = prepared.spec, _deployments(prepared)
    if (folder / FREE).exists():  # of a run that was killed; its model may have been another one
        shutil.rmtree(folder / FREE)
    if len(deployments) > 1:
        deployments = measuring(partial(_measured, deployments=deployments, folder=folder))
    try:
        chosen, reason = choose(deployments, spec.reference)
    except UserError as error:
        raise StudyFileError(spec.file, "reference", str(error)) from error
    kind = " default:" if chosen.is_default else ""
    name = f"{prepared.target.runtime}{kind} {chosen.computes_in}"
    record = ReferenceRecord(chosen.precision, name, reason, tuple(deployments))
    artifact = measuring(partial(_kept, folder=folder, precision=chosen.precision))
    return record, paying(deployments, chosen), artifact


def _deployments(prepared: PreparedStudy) -> list[FreeDeployment]:
    """The free deployments that the choice needs, the runtime's default first.

    A study file that names both its reference and the float precisions of its space leaves nothing to choose.
    """
    (default, *others), computed = prepared.float_precisions()
    found = [FreeDeployment(default, computed, True), *(FreeDeployment(each, each, False) for each in others)]
    wanted = prepared.spec.reference
    if wanted == "best" or FLOATS.key not in prepared.spec.space.model_fields_set:
        return found
    return [each for each in found if each.precision == FLOAT32 or (wanted == "default" and each.is_default)]


def _measured(context: Context, deployments: list[FreeDeployment], folder: Path) -> list[FreeDeployment]:
    """The deployments with their figures, each timed side by side with float32."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = lower_reference(context, _folder(folder, FLOAT32))
    scores = score(plain, context.workload.validation, context)
    with bench_of(context, plain) as bench:
        return [
            replace(each, figures=_of_float32(scores, context))
            if each.precision == FLOAT32
            else _paired(each, context, bench, scores, _folder(folder, each.precision))
            for each in deployments
        ]


def _of_float32(scores: Scores, context: Context) -> dict[str, Measurement]:
    same = Measurement.exact("speedup_float32", 1.0, "itself")
    return {figure.name: figure for figure in (same, *accuracy_measurements(scores, scores, context))}


def _paired(deployment: FreeDeployment, context: Context, bench: Timer, plain: Scores, folder: Path) -> FreeDeployment:
    try:
        artifact = lower_reference(context, folder, deployment.precision)
        timing = bench.time(artifact.path, TIMING_SECONDS)
        scores = score(artifact, context.workload.validation, context)
    except (EvaluationError, LoweringError) as error:  # as where float16 overflows: it is no way to deploy this model
        return replace(deployment, problem=str(error))
    speedup = replace(latency_measurements(timing, 1.0, context.target)[0], name="speedup_float32")
    figures = (speedup, *accuracy_measurements(scores, plain, context))
    return replace(deployment, figures={figure.name: figure for figure in figures})


def _folder(folder: Path, precision: FloatPrecision) -> Path:
    return folder / FREE / precision


def _kept(context: Context, folder: Path, precision: FloatPrecision) -> Artifact:
    """The reference's artifact in its place; those of the other deployments go."""
    measured = _folder(folder, precision) / f"model{context.runtime.suffix}"
    if not measured.is_file():
        return lower_reference(context, folder, precision)
    kept = Path(shutil.copy(measured, folder))
    shutil.rmtree(folder / FREE)
    return Artifact.of(kept)
