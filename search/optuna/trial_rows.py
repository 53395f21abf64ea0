"""Optuna's trials read by column: as objects of SQLAlchemy, a row of 60 for each trial, they take ten times as long."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import lru_cache
from sys import intern
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import ColumnElement, Engine, or_, select
from sqlalchemy.orm import Session

MOST_NAMED = 500
"""Rows of more trials than this are asked for by the range of their ids: SQLite takes only so many values in one statement."""

AT_ONCE = 1000
"""The rows of so many trials are in memory at once."""

PARTS = (
    models.TrialParamModel, models.TrialValueModel, models.TrialUserAttributeModel,
    models.TrialSystemAttributeModel, models.TrialIntermediateValueModel,
)  # fmt: skip
"""The tables that a trial's rows lie in."""

_distribution = lru_cache(maxsize=10_000)(json_to_distribution)


def read_trials(
    engine: Engine, study_id: int, after: int = -1, also: Collection[int] = (), most: int | None = None
) -> list[FrozenTrial]:
    """A study's trials with a higher id than `after`, and those of the ids in `also`, by number; the first `most` of them."""
    table = models.TrialModel
    wanted = or_(table.trial_id > after, table.trial_id.in_(also)) if also else table.trial_id > after
    return _read(engine, table.study_id == study_id, wanted, most=most)


def read_trial(engine: Engine, trial_id: int) -> FrozenTrial | None:
    """The trial of an id; None where there is none."""
    return next(iter(_read(engine, models.TrialModel.trial_id == trial_id)), None)


def _read(engine: Engine, *wanted: ColumnElement[bool], most: int | None = None) -> list[FrozenTrial]:
    columns = models.TrialModel.__table__.c
    trials: list[FrozenTrial] = []
    with Session(engine) as session:
        rows = session.execute(select(*columns).where(*wanted).order_by(columns.number).limit(most)).all()
        for begin in range(0, len(rows), AT_ONCE):
            some = rows[begin : begin + AT_ONCE]
            parts = [_parts(session, model, [row.trial_id for row in some]) for model in PARTS]
            trials += [_trial(row, *(part[row.trial_id] for part in parts)) for row in some]
    return trials


def _parts(session: Session, model: Any, ids: Sequence[int]) -> dict[int, list[Any]]:
    """Trial -> its rows of one of Optuna's tables, oldest first."""
    table = model.__table__
    (key,) = table.primary_key.columns
    found: dict[int, list[Any]] = {trial_id: [] for trial_id in ids}
    if ids:
        few = len(ids) <= MOST_NAMED
        # What lies between in a range belongs to other studies and is left out.
        within = table.c.trial_id.in_(ids) if few else table.c.trial_id.between(min(ids), max(ids))
        columns = [table.c.trial_id, *(column for column in table.c if column.name != "trial_id")]
        for row in session.execute(select(*columns).where(within).order_by(key)).all():  # one by one takes far longer
            if row[0] in found:
                found[row[0]].append(row)
    return found


def _trial(
    row: Any, parameters: list[Any], values: list[Any], user: list[Any], system: list[Any], steps: list[Any]
) -> FrozenTrial:
    distributions = {intern(p.param_name): _distribution(p.distribution_json) for p in parameters}
    by_objective = sorted(values, key=lambda value: value.objective)
    choices = zip(parameters, distributions.items(), strict=True)
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[models.TrialValueModel.stored_repr_to_value(v.value, v.value_type) for v in by_objective] or None,
        datetime_start=row.datetime_start,
        datetime_complete=row.datetime_complete,
        params={name: distribution.to_external_repr(p.param_value) for p, (name, distribution) in choices},
        distributions=distributions,
        user_attrs={intern(attribute.key): json.loads(attribute.value_json) for attribute in user},
        system_attrs={intern(attribute.key): json.loads(attribute.value_json) for attribute in system},
        intermediate_values={
            step.step: models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(
                step.intermediate_value, step.intermediate_value_type
            )
            for step in steps
        },
        trial_id=row.trial_id,
    )
