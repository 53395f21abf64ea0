"""The data of a study's page in the dashboard, read and packed quickly.

optuna-dashboard reads every trial through objects of SQLAlchemy at each refresh, compares every knob of every trial with every
other, and sends each knob's choices again with each trial: 5.6 seconds and 30 MB at 1,000 trials of 60 knobs. Here finished trials
are read once, by column, and choices are sent once; a long study's page opens with its first trials and receives the others with
its next refreshes.
"""

from __future__ import annotations

import copy
import numbers
import threading
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import _app as dashboard_app
from optuna_dashboard import _serializer as serializer

from ..optuna.trial_rows import read_trials

FIRST_SENT = 499
"""Trials in the first answer about a study: a page that has fewer than 500 asks again after five seconds, others after ten."""

MOST_SENT = 1500
"""Trials in each answer after that."""

MOST_READ = 2500
"""Trials that an answer reads anew from the database, at most; until all are read, the best trials are the best of those."""

NO_CHOICES = {"type": "CategoricalDistribution", "choices": []}
"""The distribution of a knob within a trial: the page takes choices from the study's search space."""

_their_properties = dashboard_app.get_cached_extra_study_property
_their_trial = serializer.serialize_frozen_trial
_their_study = serializer.serialize_study_detail


def quicken() -> None:
    """Have optuna-dashboard use this module's functions in place of its own."""
    finished = FinishedTrials()
    dashboard_app.get_trials = lambda cache, storage, study_id: finished.trials(storage, study_id)
    dashboard_app.get_cached_extra_study_property = study_properties
    serializer.serialize_frozen_trial = serialize_trial
    dashboard_app.serialize_study_detail = serialize_study


class FinishedTrials:
    """Reads the trials of studies, those that have ended only once: they no longer change. Safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[int, dict[int, FrozenTrial]] = defaultdict(dict)
        self._lock = threading.Lock()

    def trials(self, storage: RDBStorage, study_id: int) -> list[FrozenTrial]:
        """The study's trials by number, as they are now; of a long study those read so far, more with each call."""
        with self._lock:
            known = self._known[study_id]
            unfinished = [trial_id for trial_id, trial in known.items() if not trial.state.is_finished()]
            most = MOST_READ if known else FIRST_SENT
            current = read_trials(storage.engine, study_id, max(known, default=-1), unfinished, most + len(unfinished))
            known.update({trial._trial_id: trial for trial in current})
            return sorted(known.values(), key=lambda trial: trial.number)


Named = list[tuple[str, BaseDistribution]]


def study_properties(
    cache: Any, study_id: int, trials: list[FrozenTrial]
) -> tuple[Named, Named, list[tuple[str, bool]], bool]:
    """Knobs that all trials have, knobs that any has, attributes with whether they sort as numbers, whether values were reported.

    As optuna-dashboard finds them, for studies whose knobs are all choices, the same in all trials; others are left to it.
    """
    counted = [trial for trial in trials if trial.state != TrialState.FAIL]
    union = _same_choices(counted)
    if union is None:
        return _their_properties(cache, study_id, trials)
    shared = set(union).intersection(*(trial.distributions for trial in counted))
    named = sorted(union.items(), key=lambda item: item[0])
    steps = any(trial.intermediate_values for trial in counted)
    return [item for item in named if item[0] in shared], named, list(_sortable(trials).items()), steps


def _same_choices(trials: Iterable[FrozenTrial]) -> dict[str, BaseDistribution] | None:
    """Knob -> its choices, of all trials; None where a parameter is not categorical, or differs between trials."""
    union: dict[str, BaseDistribution] = {}
    for trial in trials:
        for name, found in trial.distributions.items():
            known = union.setdefault(name, found)
            if not isinstance(found, CategoricalDistribution) or not (known is found or known == found):
                return None
    return union


def _sortable(trials: Iterable[FrozenTrial]) -> dict[str, bool]:
    """User attribute -> whether it is a number in every trial that has it."""
    sortable: dict[str, bool] = {}
    for trial in trials:
        for key, value in trial.user_attrs.items():
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            sortable[key] = sortable.get(key, True) and is_number
    return sortable


def serialize_study(study: Any, best: list[FrozenTrial], trials: list[FrozenTrial], *others: Any) -> dict[str, Any]:
    """A study as the page takes it, with so many of the trials that the page does not have yet."""
    is_first = bool(trials) and trials[0].number == 0
    return _their_study(study, best, trials[: FIRST_SENT if is_first else MOST_SENT], *others)


def serialize_trial(study_id: int, trial: FrozenTrial, study_system_attrs: dict[str, Any]) -> dict[str, Any]:
    """A trial as the page takes it, without the choices of each knob."""
    if not all(isinstance(found, CategoricalDistribution) for found in trial.distributions.values()):
        return _their_trial(study_id, trial, study_system_attrs)
    bare = copy.copy(trial)
    bare.params, bare.distributions = {}, {}
    return {
        **_their_trial(study_id, bare, study_system_attrs),
        "params": [
            _parameter(name, trial.distributions[name], type(value), value) for name, value in trial.params.items()
        ],
    }


@lru_cache(maxsize=100_000)
def _parameter(name: str, distribution: BaseDistribution, kind: type, value: Any) -> dict[str, Any]:
    """A knob's choice as the page takes it; `kind` separates 1 from 1.0 and True, which are equal."""
    return {
        "name": name,
        "param_internal_value": distribution.to_internal_repr(value),
        "param_external_value": str(value),
        "param_external_pytyp": str(kind),
        "distribution": NO_CHOICES,
    }
