"""Changes to the database that are more than a new row, each within the caller's session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ...core.errors import StoreError
from ..study_file.spec import StudySpec, incompatible_changes
from . import tables
from .queries import ended_trials, find_study, find_trial, find_trials, front_records
from .records import Violation
from .rows import violation_values
from .trial_state import TrialState


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ends; the arguments of `Store.finish_trial`.

    Raises:
        ValueError: the parts do not fit together.
    """

    state: TrialState
    reason: str | None
    violations: Iterable[Violation] | None
    rung: int | None
    driver_died: bool

    def __post_init__(self) -> None:
        if not self.state.has_ended:
            raise ValueError(f"a trial does not end as {self.state}")
        if self.state is not TrialState.COMPLETE and not self.reason:
            raise ValueError(f"a trial that ends {self.state} needs a reason")
        if (self.state is TrialState.PRUNED) != (self.rung is not None):
            raise ValueError("a rung is noted of pruned trials, and of those alone")


def change_spec(row: tables.Study, spec: StudySpec) -> None:
    """Continue a study with a changed file.

    Raises:
        StoreError: what may not change within a study did.
    """
    begun = StudySpec.from_json(row.spec)
    if changes := incompatible_changes(begun, spec):
        here = f"go on with seed {begun.seed}, or " if changes == ["seed"] else ""
        changed = ", ".join(changes)
        raise StoreError(f"study {spec.study!r} has trials with another {changed}; {here}give the study another name")
    row.spec = spec.to_json()


def end_trial(session: Session, study: str, number: int, end: TrialEnd) -> None:
    """End a running trial.

    Raises:
        StoreError: no such trial, or it has ended before.
    """
    trial = find_trial(session, study, number)
    if trial.state != TrialState.RUNNING:
        raise StoreError(f"trial {number} of study {study!r} has ended: {trial.state}")
    trial.state, trial.reason, trial.finished = end.state.value, end.reason, tables.now()
    trial.rung, trial.driver_died = end.rung, end.driver_died
    trial.violations = violation_values(end.violations)


def add_front(session: Session, study: str, members: Sequence[int], hypervolume: float) -> bool:
    """Add a snapshot of the front; whether one was needed, as the newest has other members.

    Raises:
        StoreError: a member is not a trial of the study.
    """
    study_id = find_study(session, study).id
    last = front_records(session, study_id, newest_only=True)
    if last and last[0].members == tuple(sorted(set(members))):
        return False
    trials = find_trials(session, study, set(members))
    front = tables.Front(study_id=study_id, hypervolume=hypervolume, trials=ended_trials(session, study_id))
    session.add(front)
    session.flush()
    session.add_all(tables.FrontMember(front_id=front.id, trial_id=trial.id) for trial in trials)
    return True


def delete_rows(session: Session, study: tables.Study) -> None:
    """Delete a study's row and every row that belongs to it."""
    fronts = select(tables.Front.id).filter_by(study_id=study.id)
    session.execute(delete(tables.FrontMember).where(tables.FrontMember.front_id.in_(fronts)))
    belonging = (
        tables.Front, tables.Artifact, tables.MeasurementRow, tables.Sensitivity, tables.Reference, tables.Trial,
    )  # fmt: skip
    for table in belonging:
        session.execute(delete(table).filter_by(study_id=study.id))
    session.delete(study)
