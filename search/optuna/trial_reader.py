"""Trials of an Optuna study as designers know them."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ...studies.store.trial_state import TrialState as StoredState
from ..sampler.designer import Choices, CompletedTrial, Outcome
from .attributes import DUPLICATE, STATE, STOPPED_EPOCHS, STOPPED_VALUES, damage_noted

OUTCOMES = {
    TrialState.COMPLETE: Outcome.COMPLETE,
    TrialState.PRUNED: Outcome.PRUNED,
    TrialState.FAIL: Outcome.FAILED,
}
"""What a designer calls Optuna's states of trials that have ended."""


class TrialReader:
    """Reads each trial that has ended once."""

    def __init__(self) -> None:
        self._read: set[int] = set()

    def read(self, study: Study) -> tuple[list[CompletedTrial], list[Choices]]:
        """Trials that have ended since the last call, and the parameters of all that run."""
        completed: list[CompletedTrial] = []
        running: list[Choices] = []
        for trial in study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING and trial.params:
                running.append(trial.params)
            elif trial.state in OUTCOMES and trial.number not in self._read:
                self._read.add(trial.number)
                if trial.params and not is_excused(trial):
                    completed.append(as_completed(trial))
        return completed, running


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
