"""What the store asks the database, each question within the caller's session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session, aliased

from ...core.errors import StoreError
from ...core.measurement import Measurement
from ...core.validation import suggestion
from . import tables
from .records import (
    FrontRecord,
    FrontSize,
    MeasurementRecord,
    SensitivityRecord,
    StudyRecord,
    TargetRecord,
    TrialRecord,
    TrialSummary,
)
from .rows import SUMMARY, measurement_of, sensitivity_of, study_of, summary_of, trial_of
from .trial_state import TrialState


def find_study(session: Session, name: str) -> tables.Study:
    """The row of a study.

    Raises:
        StoreError: there is none of that name; names the nearest.
    """
    row = session.scalar(select(tables.Study).filter_by(name=name))
    if row is None:
        known = session.scalars(select(tables.Study.name)).all()
        raise StoreError(f"no study {name!r} in the database; {suggestion(name, known)}")
    return row


def find_trial(session: Session, study: str, number: int) -> tables.Trial:
    """The row of a trial.

    Raises:
        StoreError: no such study, or no trial of that number in it.
    """
    return find_trials(session, study, [number])[0]


def find_trials(session: Session, study: str, numbers: Collection[int]) -> Sequence[tables.Trial]:
    """The rows of several trials, by number.

    Raises:
        StoreError: no such study, or one of the trials is not in it.
    """
    study_id = find_study(session, study).id
    wanted = select(tables.Trial).where(tables.Trial.study_id == study_id, tables.Trial.number.in_(numbers))
    rows = session.scalars(wanted.order_by(tables.Trial.number)).all()
    missing = set(numbers) - {row.number for row in rows}
    if missing:
        raise StoreError(f"study {study!r} has no trial {min(missing)}; `slimfront status {study}` counts its trials")
    return rows


def study_record(session: Session, row: tables.Study) -> StudyRecord:
    """A study with its baseline and its reference."""
    return study_of(row, baseline_rows(session, row), session.get(tables.Reference, row.id))


def baseline_rows(session: Session, study: tables.Study) -> Sequence[tables.MeasurementRow]:
    """The rows of the uncompressed model's measurements, oldest first."""
    wanted = select(tables.MeasurementRow).filter_by(study_id=study.id, trial_id=None)
    return session.scalars(wanted.order_by(tables.MeasurementRow.id)).all()


def trial_records(session: Session, study: str, *wanted: ColumnElement[bool]) -> list[TrialRecord]:
    """A study's trials that meet all conditions, by number, each with its newest measurement of each name."""
    study_id = find_study(session, study).id
    trials = select(tables.Trial).where(tables.Trial.study_id == study_id, *wanted).order_by(tables.Trial.number)
    ids = trials.with_only_columns(tables.Trial.id).order_by(None)
    table = tables.MeasurementRow
    # Rows of columns, as objects would take longer to load than the whole query.
    columns: list[Any] = [table.trial_id, *(getattr(table, field.name) for field in fields(Measurement))]
    # The study is named again for the index on (study, trial).
    rows = select(*columns).where(table.study_id == study_id, table.trial_id.in_(ids)).order_by(table.id)
    measured: dict[int, dict[str, Measurement]] = defaultdict(dict)
    for trial_id, *values in session.execute(rows).all():  # one by one takes longer than the query
        measurement = Measurement(*values)
        measured[trial_id][measurement.name] = measurement
    return [trial_of(study, trial, measured[trial.id]) for trial in session.scalars(trials)]


def trial_summaries(session: Session, study_id: int) -> list[TrialSummary]:
    """A study's trials by number, without policies and measurements."""
    columns: list[Any] = [getattr(tables.Trial, name) for name in SUMMARY]
    rows = session.execute(select(*columns).where(tables.Trial.study_id == study_id).order_by(tables.Trial.number))
    return [summary_of(row) for row in rows]


def paid_trials(session: Session, free: Collection[str]) -> dict[str, int]:
    """Study -> trials that its budget has paid for, counted by the database by the rules of `budget_rules.ended`.

    Args:
        free: digests of the policies that leave the model as it is.
    """
    trial, pruned = tables.Trial, aliased(tables.Trial)
    goes_on = (
        (pruned.study_id == trial.study_id) & (pruned.number == trial.retry_of) & (pruned.state == TrialState.PRUNED)
    )
    counts, is_failed = pruned.id.is_(None), trial.state == TrialState.FAILED

    def number_of(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    begun = number_of(~is_failed & (trial.digest.not_in(free))) > 0
    rows = session.execute(
        select(tables.Study.name, number_of(~is_failed & counts), number_of(counts), begun)
        .join(trial, trial.study_id == tables.Study.id)
        .outerjoin(pruned, goes_on)
        .where(trial.state.not_in((TrialState.RUNNING, TrialState.INTERRUPTED)))
        .group_by(tables.Study.name)
    )
    return {name: total if has_begun else results for name, results, total, has_begun in rows}


def newest_values(session: Session, study_id: int, metric: str, but: Collection[str]) -> dict[int, float]:
    """Trial -> its newest value of a metric, without the trials whose policies have one of these digests."""
    trial, row = tables.Trial, tables.MeasurementRow
    rows = session.execute(
        select(trial.number, row.value)
        .join(trial, row.trial_id == trial.id)
        .where(row.study_id == study_id, row.name == metric, trial.digest.not_in(but))
        .order_by(row.id)
    )
    return {row.number: row.value for row in rows}


def newest_front_id(study_id: int) -> Any:
    """A scalar subquery: the study's newest snapshot, NULL before the first."""
    return select(func.max(tables.Front.id)).where(tables.Front.study_id == study_id).scalar_subquery()


def front_records(session: Session, study_id: int, *, newest_only: bool = False) -> list[FrontRecord]:
    """The study's snapshots, oldest first, or a list of the newest alone."""
    wanted = tables.Front.id == newest_front_id(study_id) if newest_only else tables.Front.study_id == study_id
    fronts = session.scalars(select(tables.Front).where(wanted).order_by(tables.Front.id)).all()
    members: dict[int, list[int]] = defaultdict(list)
    rows = (
        select(tables.FrontMember.front_id, tables.Trial.number)
        .join(tables.Trial, tables.Trial.id == tables.FrontMember.trial_id)
        .join(tables.Front, tables.Front.id == tables.FrontMember.front_id)
        .where(wanted)
        .order_by(tables.Trial.number)
    )
    for front_id, number in session.execute(rows):
        members[front_id].append(number)
    return [
        FrontRecord(
            members=tuple(members[front.id]), hypervolume=front.hypervolume, trials=front.trials, made_at=front.made_at
        )
        for front in fronts
    ]


def front_sizes(session: Session, study_id: int) -> list[FrontSize]:
    """The size of each of the study's snapshots, oldest first."""
    front = tables.Front
    rows = select(front.hypervolume, front.trials, front.made_at).where(front.study_id == study_id).order_by(front.id)
    return [
        FrontSize(hypervolume=row.hypervolume, trials=row.trials, made_at=row.made_at) for row in session.execute(rows)
    ]


def ended_trials(session: Session, study_id: int) -> int:
    """How many trials of a study do not run."""
    ended = select(func.count()).where(tables.Trial.study_id == study_id, tables.Trial.state != TrialState.RUNNING)
    return session.execute(ended).scalar_one()


def measurement_records(session: Session, study: str, number: int | None) -> list[MeasurementRecord]:
    """Every measurement ever made of a trial, or of the baseline where `number` is None, oldest first."""
    study_id = find_study(session, study).id
    trial_id = None if number is None else find_trial(session, study, number).id
    wanted = select(tables.MeasurementRow).filter_by(study_id=study_id, trial_id=trial_id)
    rows = session.scalars(wanted.order_by(tables.MeasurementRow.id))
    return [MeasurementRecord(number, measurement_of(row), row.rung, row.target, row.made_at) for row in rows]


def measurement_histories(session: Session, study_id: int) -> dict[int, list[MeasurementRecord]]:
    """Trial -> every measurement ever made of it, oldest first."""
    table, found = tables.MeasurementRow, defaultdict[int, list[MeasurementRecord]](list)
    names = [field.name for field in fields(Measurement)]
    columns: list[Any] = [table.rung, table.target, table.made_at, *(getattr(table, name) for name in names)]
    rows = (
        select(tables.Trial.number, *columns)
        .join(tables.Trial, tables.Trial.id == table.trial_id)
        .where(table.study_id == study_id)
        .order_by(table.id)
    )
    for number, rung, target, made_at, *values in session.execute(rows):
        found[number].append(MeasurementRecord(number, Measurement(*values), rung, target, made_at))
    return dict(found)


def sensitivity_records(session: Session, study: str) -> list[SensitivityRecord]:
    """What single choices of a study were found to damage, oldest first."""
    wanted = select(tables.Sensitivity).filter_by(study_id=find_study(session, study).id)
    return [sensitivity_of(row) for row in session.scalars(wanted.order_by(tables.Sensitivity.id))]


def target_records(session: Session) -> list[TargetRecord]:
    """All profiled targets, by name."""
    rows = session.scalars(select(tables.Target).order_by(tables.Target.name))
    return [TargetRecord(row.name, row.card, row.fingerprint, row.measured_at) for row in rows]
