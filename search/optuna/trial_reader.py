"""Trials of an Optuna study as designers know them."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ...studies.store.trial_state import TrialState as StoredState
from ..sampler.designer import Choices, CompletedTrial, Outcome
from .attributes import DUPLICATE, STATE, STOPPED_EPOCHS, STOPPED_VALUES, damage_noted
from .distributions import Distributions

OUTCOMES = {
    TrialState.COMPLETE: Outcome.COMPLETE,
    TrialState.PRUNED: Outcome.PRUNED,
    TrialState.FAIL: Outcome.FAILED,
}
"""What a designer calls Optuna's states of trials that have ended."""


class Unread:
    """Goes through a study's trials, past those that had ended before: a long study is not read anew for each proposal."""

    def __init__(self) -> None:
        self._read: set[int] = set()
        self._settled = 0

    def of(self, study: Study) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Trials that have ended since the last call, and all that have not."""
        trials = study._get_trials(deepcopy=False, use_cache=True)  # which Optuna reads once an `ask`, for all samplers
        while self._settled < len(trials) and trials[self._settled].number in self._read:
            self._settled += 1
        left = [trial for trial in trials[self._settled :] if trial.number not in self._read]
        ended = [trial for trial in left if trial.state in OUTCOMES]
        self._read.update(trial.number for trial in ended)
        return ended, [trial for trial in left if trial.state not in OUTCOMES]


class TrialReader:
    """Reads each trial that has ended once."""

    def __init__(self) -> None:
        self._unread = Unread()

    def read(self, study: Study) -> tuple[list[CompletedTrial], list[Choices]]:
        """Trials that have ended since the last call, and the parameters of all that run."""
        ended, others = self._unread.of(study)
        completed = [as_completed(trial) for trial in ended if trial.params and not is_excused(trial)]
        return completed, [trial.params for trial in others if trial.state == TrialState.RUNNING and trial.params]


class SeenDistributions:
    """All parameters that any finished trial of a study has had, by name, those of some branches only too."""

    def __init__(self) -> None:
        self._unread = Unread()
        self._found: Distributions = {}

    def of(self, study: Study) -> Distributions:
        """As the study is now."""
        ended, _ = self._unread.of(study)
        for trial in ended:
            if trial.state != TrialState.FAIL:
                self._found.update(trial.distributions)
        return dict(sorted(self._found.items()))


def is_excused(trial: FrozenTrial) -> bool:
    """Whether a trial failed for no fault of its policy: it was interrupted, or the policy had been tried."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get(STATE) in (StoredState.INTERRUPTED, DUPLICATE)


def as_completed(trial: FrozenTrial) -> CompletedTrial:
    """A trial of Optuna's that has ended."""
    noted = trial.user_attrs
    values = trial.values if trial.state == TrialState.COMPLETE else noted.get(STOPPED_VALUES)
    return CompletedTrial(
        trial.number,
        trial.params,
        OUTCOMES[trial.state],
        tuple(values) if values is not None else None,
        damage_noted(noted),
        trial.constraints,
        noted.get(STOPPED_EPOCHS),
    )
