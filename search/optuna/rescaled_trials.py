"""Optuna's copy of a study's trials brought to the scale of another reference latency; see `studies.store.rescaling`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from optuna.storages._rdb import models
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from sqlalchemy import Select, Table, inspect, select, update
from sqlalchemy.orm import Session

from ...core.metrics import METRICS
from ...studies.store.judgement import rescaled
from ...studies.store.records import Violation
from ...studies.study_file.spec import StudySpec
from .attributes import STOPPED_VALUES
from .study import DASHBOARD_CONSTRAINTS

TABLES: Mapping[str, Table] = models.BaseModel.metadata.tables


def rescale_trials(session: Session, factor: float, spec: StudySpec) -> None:
    """Multiply the milliseconds in Optuna's tables by `factor`, and judge the constraints on them again."""
    if not inspect(session.connection()).has_table("trials"):
        return  # the study was not searched yet
    trials, studies = TABLES["trials"].c, TABLES["studies"].c
    ids = select(trials.trial_id).where(
        trials.study_id.in_(select(studies.study_id).where(studies.study_name == spec.study))
    )
    powers = [METRICS[name].latency_power for name in spec.objectives]
    values = TABLES["trial_values"]
    for objective, power in enumerate(powers):
        mine = values.c.trial_id.in_(ids), values.c.objective == objective
        session.execute(update(values).where(*mine).values(value=values.c.value * factor**power))
    _rescale_attributes(session, ids, powers, factor)
    _rescale_constraints(session, ids, spec, factor)


def _rescale_attributes(session: Session, ids: Select, powers: Sequence[int], factor: float) -> None:
    """What trials were annotated with for the dashboard and the sampler."""
    table = TABLES["trial_user_attributes"]
    scaled = {name: metric.latency_power for name, metric in METRICS.registered.items() if metric.latency_power}
    wanted = table.c.trial_id.in_(ids), table.c.key.in_([*scaled, STOPPED_VALUES])
    for row in session.execute(select(table).where(*wanted)).all():
        noted = json.loads(row.value_json)
        if row.key == STOPPED_VALUES:
            noted = [value * factor**power for value, power in zip(noted, powers, strict=True)]
        else:
            noted *= factor ** scaled[row.key]
        mine = table.c.trial_user_attribute_id == row.trial_user_attribute_id
        session.execute(update(table).where(mine).values(value_json=json.dumps(noted)))


def _rescale_constraints(session: Session, ids: Select, spec: StudySpec, factor: float) -> None:
    """Each constraint has an attribute of its own, and the dashboard a list of them in the order they were set."""
    table = TABLES["trial_system_attributes"]
    wanted = table.c.trial_id.in_(ids), table.c.key.like(f"{_CONSTRAINTS_KEY}%")
    found: dict[int, dict[str, float | list[float]]] = defaultdict(dict)
    for row in session.execute(select(table).where(*wanted).order_by(table.c.trial_system_attribute_id)).all():
        found[row.trial_id][row.key] = json.loads(row.value_json)
    metrics = {f"{_CONSTRAINTS_KEY}:{constraint}": constraint.metric for constraint in spec.constraints}
    for trial_id, noted in found.items():
        for key, value in _rescaled(noted, metrics, factor):
            mine = table.c.trial_id == trial_id, table.c.key == key
            session.execute(update(table).where(*mine).values(value_json=json.dumps(value)))


def _rescaled(
    noted: Mapping[str, float | list[float]], metrics: Mapping[str, str], factor: float
) -> Iterator[tuple[str, float | list[float]]]:
    """A trial's attributes about constraints, rescaled."""
    excesses = {key: value for key, value in noted.items() if not isinstance(value, list)}
    for key in excesses.keys() & metrics.keys():
        constraint = key.removeprefix(f"{_CONSTRAINTS_KEY}:")
        excesses[key] = rescaled(Violation(metrics[key], constraint, excesses[key]), factor).excess
    yield from excesses.items()
    if DASHBOARD_CONSTRAINTS in noted:
        yield DASHBOARD_CONSTRAINTS, list(excesses.values())
