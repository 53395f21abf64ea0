"""Optuna's copy of a study's trials brought to the scale of another reference latency; see `studies.store.rescaling`."""

from __future__ import annotations

import json
from collections.abc import Iterable

from optuna.storages._rdb import models
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from ...core.metrics import METRICS
from ...studies.store.judgement import rescaled
from ...studies.store.records import Violation
from ...studies.study_file.spec import StudySpec
from .attributes import STOPPED, STOPPED_VALUES
from .study import DASHBOARD_CONSTRAINTS


def rescale_trials(session: Session, spec: StudySpec, factor: float) -> None:
    """Multiply the milliseconds in Optuna's tables by `factor`, and judge the constraints on them again."""
    if not inspect(session.connection()).has_table(models.StudyModel.__tablename__):
        return  # the study was not searched yet
    trials = (
        select(models.TrialModel.trial_id).join(models.StudyModel).where(models.StudyModel.study_name == spec.study)
    )
    powers = [METRICS[name].latency_power for name in spec.objectives]
    for value in session.scalars(select(models.TrialValueModel).where(models.TrialValueModel.trial_id.in_(trials))):
        value.value *= factor ** powers[value.objective]
    noted = models.TrialUserAttributeModel
    for attribute in session.scalars(select(noted).where(noted.trial_id.in_(trials))):
        attribute.value_json = _noted(attribute.key, attribute.value_json, powers, factor)
    _rescale_constraints(session, spec, trials, factor)


def _noted(key: str, value_json: str, powers: list[int], factor: float) -> str:
    """The JSON of an attribute that a trial was annotated with."""
    if key == STOPPED_VALUES:
        values = json.loads(value_json)
        return json.dumps([value * factor**power for value, power in zip(values, powers, strict=True)])
    if key in METRICS and METRICS[key].latency_power:
        return json.dumps(json.loads(value_json) * factor ** METRICS[key].latency_power)
    return value_json


def _rescale_constraints(session: Session, spec: StudySpec, trials: object, factor: float) -> None:
    """Each constraint has an attribute of its own, and the dashboard a list of them in the order they were set."""
    noted = models.TrialSystemAttributeModel
    by_trial: dict[int, list[models.TrialSystemAttributeModel]] = {}
    for row in session.scalars(
        select(noted).where(noted.trial_id.in_(trials)).order_by(noted.trial_system_attribute_id)
    ):
        by_trial.setdefault(row.trial_id, []).append(row)
    metrics = {str(constraint): constraint.metric for constraint in spec.constraints}
    for rows in by_trial.values():
        values = list(_rescaled_constraints(rows, metrics, factor))
        for row in rows:
            if row.key == DASHBOARD_CONSTRAINTS:
                row.value_json = json.dumps(values)


def _rescaled_constraints(
    rows: Iterable[models.TrialSystemAttributeModel], metrics: dict[str, str], factor: float
) -> Iterable[float]:
    for row in rows:
        prefix, _, name = row.key.partition(":")
        if prefix != _CONSTRAINTS_KEY or not name:
            continue
        excess = json.loads(row.value_json)
        if name != STOPPED and name in metrics:
            excess = rescaled(Violation(metrics[name], name, excess), factor).excess
            row.value_json = json.dumps(excess)
        yield excess
