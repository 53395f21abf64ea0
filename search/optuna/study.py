"""The Optuna study of a search: it is asked for parameters and given results; only here is its storage touched.

Optuna's tables and slimfront's lie in the same database; trial numbers are the same in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from ...core.metrics import METRICS
from ...core.texts import plain_text
from ...studies.analysis.newest_front import objectives_of
from ...studies.store.store import Store
from ...studies.study_file.spec import StudySpec
from .attributes import DUPLICATE, REASON, STATE
from .storage import StudyStorage, open_storage

if TYPE_CHECKING:  # the dashboard does without torch
    from ...spaces.space import Choice, Space

DASHBOARD_CONSTRAINTS = "constraints"
"""The dashboard greys infeasible trials by this system attribute; it does not read what `Trial.set_constraint` stores."""


class OptunaStudy:
    """Ask and tell over one Optuna study.

    Ownership: one driver at a time; nothing here is safe to share between threads.

    Args:
        sampler: makes the sampler, given how many trials the study has.
    """

    def __init__(self, spec: StudySpec, space: Space, store: Store, sampler: Callable[[int], BaseSampler]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._storage = StudyStorage(open_storage(store))
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=spec.study,
            directions=[METRICS[name].direction for name in spec.objectives],
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # metric names are what the dashboard shows
            self._study.set_metric_names([f"{o.name} [{o.unit}]" for o in objectives_of(store.get_study(spec.study))])
        self._make_sampler = sampler
        self.renew_sampler()
        self._asked: dict[int, optuna.Trial] = {}

    def renew_sampler(self) -> None:
        """Make the sampler anew, since what it starts from has changed."""
        self._study.sampler = self._make_sampler(len(self._study.get_trials(deepcopy=False)))

    def reclaim(self) -> list[int]:
        """Take over the trials that an earlier driver left running; numbers of those."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._asked[trial.number] = optuna.Trial(self._study, trial._trial_id)
        return list(self._asked)

    def ask(self) -> tuple[int, dict[str, Choice], dict[str, Any]]:
        """Number, parameters and user attributes of the next trial: an enqueued one, else the sampler's."""
        trial = self._study.ask()
        _ = trial.relative_params  # NSGA-II ignores enqueued parameters unless these are read first
        with self._storage.together():
            parameters: dict[str, Any] = {
                knob.name: trial.suggest_categorical(knob.name, knob.choices) for knob in self._space.knobs
            }
        self._asked[trial.number] = trial
        return trial.number, parameters, dict(trial.user_attrs)

    def enqueue(self, parameters: Mapping[str, Choice], attributes: Mapping[str, Any]) -> None:
        """Have these parameters asked next."""
        self._study.enqueue_trial(dict(parameters), user_attrs=dict(attributes))

    def waiting(self) -> list[dict[str, Any]]:
        """Parameters of the trials that are enqueued and were not asked yet."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return [dict(trial.system_attrs.get("fixed_params", {})) for trial in trials]

    def annotate(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Attach what the dashboard shows in addition to the values of a trial that was asked here."""
        with self._storage.together():
            for key, value in attributes.items():
                self._asked[number].set_user_attr(key, plain_text(str(value)) if key == REASON else value)

    def tell(self, number: int, values: Sequence[float] | None, violations: Mapping[str, float]) -> None:
        """End a trial: with its objective values, or without any where a constraint ended it early."""
        trial = self._asked.pop(number)
        known = trial.constraints  # where a driver was killed after it had set some
        with self._storage.together():
            for constraint, violation in violations.items():
                if constraint not in known:
                    trial.set_constraint(constraint, violation)
            self._storage.set_trial_system_attr(trial._trial_id, DASHBOARD_CONSTRAINTS, list(violations.values()))
        if values is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, list(values))

    def fail(self, number: int, reason: str, state: str = "failed") -> None:
        """End a trial that has no result.

        Args:
            state: that it has in slimfront's tables; samplers learn from failed ones that their policies fail.
        """
        self._fail(self._asked.pop(number)._trial_id, number, reason, state)

    def reject(self, number: int, duplicate_of: int) -> None:
        """End a trial whose policy an earlier one had."""
        self.fail(number, f"same policy as trial {duplicate_of}, not tried again", DUPLICATE)

    def abandon(self, reason: str) -> None:
        """End every trial that runs as interrupted, asked here or left by an earlier driver."""
        self._asked.clear()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._fail(trial._trial_id, trial.number, reason, "interrupted")

    def _fail(self, trial_id: int, number: int, reason: str, state: str) -> None:
        with self._storage.together():
            self._storage.set_trial_user_attr(trial_id, STATE, str(state))
            self._storage.set_trial_user_attr(trial_id, REASON, plain_text(reason))
        self._study.tell(number, state=TrialState.FAIL)

    def has_ended(self, number: int) -> bool:
        """Whether a trial that an earlier driver asked for has ended in Optuna's tables."""
        return self._study.get_trials(deepcopy=False)[number].state.is_finished()

    @property
    def fallback(self) -> str | None:
        """What the sampler says of having left proposing to another one; None where it did not."""
        return getattr(self._study.sampler, "fallback", None)

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever asked or enqueued."""
        return not self._study.get_trials(deepcopy=False)

    @property
    def optuna_study(self) -> optuna.Study:
        """The study itself, for notes and figures on the dashboard."""
        return self._study
