"""Rows of the tables made of values, and values made of rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, cast

from ...core.measurement import Measurement
from ...core.metrics import FRACTION, METRICS, Quality
from ...spaces.policies.float_precision import FloatPrecision
from ..study_file.spec import StudySpec
from . import tables
from .records import (
    SIMULATED,
    FreeDeployment,
    QuietMoment,
    ReferenceRecord,
    SensitivityRecord,
    StudyRecord,
    TrialRecord,
    TrialSummary,
    Violation,
)
from .trial_state import TrialState

SUMMARY = tuple(field.name for field in fields(TrialSummary))
"""The columns of a trial that its summary is made of."""


def measurement_rows(measurements: Iterable[Measurement], **about: Any) -> list[tables.MeasurementRow]:
    """New rows of what was measured.

    Raises:
        ValueError: a number is not finite.
    """
    rows = [tables.MeasurementRow(**measurement.to_dict(), **about) for measurement in measurements]
    for row in rows:
        if not all(map(math.isfinite, (row.value, row.low, row.high))):
            raise ValueError(f"{row.name} is not finite: {row.value} in [{row.low}, {row.high}]")
    return rows


def measurement_of(row: tables.MeasurementRow) -> Measurement:
    """The measurement in a row."""
    return Measurement(**{field.name: getattr(row, field.name) for field in fields(Measurement)})


def study_of(
    row: tables.Study, baseline: Iterable[tables.MeasurementRow] = (), reference: tables.Reference | None = None
) -> StudyRecord:
    """The study in a row, with the rows of its baseline and its reference."""
    return StudyRecord(
        name=row.name,
        spec=StudySpec.from_json(row.spec),
        workload_fingerprint=row.workload_fingerprint,
        versions=row.versions,
        machine=row.machine,
        created=row.created,
        baseline={measured.name: measurement_of(measured) for measured in baseline},
        remark=row.remark,
        reference=reference_of(reference) if reference is not None else None,
        quality=Quality(**row.quality) if row.quality is not None else FRACTION,
    )


def reference_row(record: ReferenceRecord, study_id: int) -> tables.Reference:
    """The row of a study's reference."""
    return tables.Reference(
        study_id=study_id,
        precision=record.precision,
        name=record.name,
        reason=record.reason,
        deployments=[
            {**_plain(each), "figures": [figure.to_dict() for figure in each.figures.values()]}
            for each in record.deployments
        ],
        moments=[{"at": each.at.isoformat(), "latency": each.latency.to_dict()} for each in record.moments],
    )


def reference_of(row: tables.Reference) -> ReferenceRecord:
    """The reference in a row."""
    deployments = [
        FreeDeployment(**{**each, "figures": {figure["name"]: Measurement(**figure) for figure in each["figures"]}})
        for each in row.deployments
    ]
    moments = [QuietMoment(datetime.fromisoformat(each["at"]), Measurement(**each["latency"])) for each in row.moments]
    return ReferenceRecord(
        cast(FloatPrecision, row.precision), row.name, row.reason, tuple(deployments), tuple(moments)
    )


def _plain(deployment: FreeDeployment) -> dict[str, Any]:
    return {field.name: getattr(deployment, field.name) for field in fields(FreeDeployment)}


def sensitivity_row(record: SensitivityRecord, study_id: int) -> tables.Sensitivity:
    """A new row of the damage that one choice does alone."""
    return tables.Sensitivity(
        study_id=study_id,
        knob=record.knob,
        choice=json.dumps(record.choice),
        digest=record.digest,
        kl=record.kl.value,
        low=record.kl.low,
        high=record.kl.high,
        n=record.kl.n,
        seconds=record.seconds,
        source=record.source,
    )


def sensitivity_of(row: tables.Sensitivity) -> SensitivityRecord:
    """The sensitivity in a row."""
    kl = Measurement("kl", row.kl, row.low, row.high, METRICS["kl"].unit, row.n, SIMULATED)
    return SensitivityRecord(row.knob, json.loads(row.choice), row.digest, kl, row.seconds, row.source)


def violation_values(violations: Iterable[Violation] | None) -> list[dict[str, Any]] | None:
    """Violations as a trial's column holds them."""
    return None if violations is None else [asdict(violation) for violation in violations]


def summary_of(columns: Sequence[Any]) -> TrialSummary:
    """The trial in a row of the columns `SUMMARY`."""
    return TrialSummary(**_typed(dict(zip(SUMMARY, columns, strict=True))))


def trial_of(study: str, row: tables.Trial, measured: Mapping[str, Measurement]) -> TrialRecord:
    """The trial in a row, with its newest measurements."""
    about = _typed({name: getattr(row, name) for name in SUMMARY})
    return TrialRecord(study=study, policy_json=row.policy, worker=row.worker, measurements=measured, **about)


def _typed(columns: dict[str, Any]) -> dict[str, Any]:
    violations = tuple(Violation(**each) for each in columns["violations"] or ())
    return {**columns, "state": TrialState(columns["state"]), "violations": violations}
