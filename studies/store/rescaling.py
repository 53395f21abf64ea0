"""Milliseconds of a whole study brought to the scale of another reference latency, within the caller's session.

`latency_ms` is the reference's quiet latency divided by a paired speed-up. A quieter moment of the reference therefore changes
all of them by one factor, and what was judged of them with them.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from ...core.measurement import PREDICTED, Measurement
from ...core.metrics import METRICS
from ..study_file.spec import StudySpec
from . import tables
from .judgement import judged, rescaled
from .queries import baseline_rows
from .records import Violation
from .rows import violation_values
from .trial_state import TrialState

BUSY = "ended for milliseconds of a busier moment, in which it met the constraints after all"
"""The reason of a trial that a constraint ended early, and that is tried again since it meets it, in words."""


def rescale(
    session: Session, study: tables.Study, latency: Measurement, also: Callable[[Session, float], None]
) -> None:
    """Have a study's milliseconds, its trials' states and its hypervolumes follow from a newly measured reference latency."""
    baseline = {row.name: row for row in baseline_rows(session, study)}
    before = baseline[latency.name]
    factor = latency.value / before.value
    _measurements(session, study.id, factor)
    session.refresh(before)
    before.value, before.low, before.high, before.n = latency.value, latency.low, latency.high, latency.n
    _hypervolumes(session, study, factor)
    for trial in session.scalars(select(tables.Trial).filter_by(study_id=study.id)):
        if trial.violations:
            _judge_again(session, study, trial, factor)
    also(session, factor)


def _measurements(session: Session, study_id: int, factor: float) -> None:
    table = tables.MeasurementRow
    for name, metric in METRICS.registered.items():
        if metric.latency_power:
            by = factor**metric.latency_power
            changed = {"value": table.value * by, "low": table.low * by, "high": table.high * by}
            session.execute(
                update(table)
                .where(
                    table.study_id == study_id,
                    or_(table.name == name, table.name.startswith(f"{name}[", autoescape=True)),
                )
                .where(table.method.not_like(f"{PREDICTED}%"))
                .values(changed)
            )


def _hypervolumes(session: Session, study: tables.Study, factor: float) -> None:
    """A hypervolume is a product over objectives, each counted from a multiple of the baseline or from 0."""
    objectives = StudySpec.from_json(study.spec).objectives
    by = factor ** sum(METRICS[name].latency_power for name in objectives)
    changed = {"hypervolume": tables.Front.hypervolume * by}
    session.execute(update(tables.Front).where(tables.Front.study_id == study.id).values(changed))


def _judge_again(session: Session, study: tables.Study, trial: tables.Trial, factor: float) -> None:
    violations = [rescaled(Violation(**each), factor) for each in trial.violations or ()]
    trial.violations = violation_values(violations)
    if trial.state not in (TrialState.COMPLETE, TrialState.INFEASIBLE):
        return
    was_infeasible = trial.state == TrialState.INFEASIBLE
    state, reason = judged(violations)
    if state is TrialState.INFEASIBLE:
        trial.state, trial.reason = state.value, reason
    elif was_infeasible:
        is_whole = _is_measured(session, study, trial)
        trial.state = (state if is_whole else TrialState.INTERRUPTED).value
        trial.reason = None if is_whole else BUSY


def _is_measured(session: Session, study: tables.Study, trial: tables.Trial) -> bool:
    """Whether a trial ran to its end, with a value for every objective."""
    names = select(tables.MeasurementRow.name).filter_by(study_id=study.id, trial_id=trial.id)
    return set(StudySpec.from_json(study.spec).objectives) <= set(session.scalars(names))
