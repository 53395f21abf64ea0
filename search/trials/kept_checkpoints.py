"""The checkpoints of a study: of trials that run, were interrupted, or were stopped at a rung and may go on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from shutil import rmtree

from ...spaces.policies.policy import Policy
from ...studies.store.records import TrialRecord
from ...studies.store.trial_state import TrialState

MOST_STOPPED = 8
"""The most trials stopped at a rung whose checkpoints are kept; another one that goes on after all is trained from its beginning."""

FOLDER = "checkpoints"
"""The name of their folder."""


class KeptCheckpoints:
    """Checkpoints by policy: whichever trial runs a policy again finds what an earlier one saved.

    Args:
        folder: of the study's artifacts.
        most_stopped: how many trials that were stopped at a rung keep theirs.
    """

    def __init__(self, folder: Path, most_stopped: int = MOST_STOPPED) -> None:
        self._folder, self._most_stopped = folder / FOLDER, most_stopped
        self._stopped: dict[int, str] = {}

    def of(self, policy: Policy) -> Path:
        """The folder for those of a policy whose trial begins; it need not exist."""
        self._stopped = {number: digest for number, digest in self._stopped.items() if digest != policy.digest}
        return self._folder / policy.digest

    def end(self, trial: TrialRecord, next_in_line: Callable[[int], Collection[int]]) -> None:
        """Keep or remove those of a trial that has ended.

        Args:
            next_in_line: so many stopped trials, those that may go on first; asked where there are more.
        """
        if trial.state is TrialState.PRUNED:
            self._stopped[trial.number] = trial.digest
            if len(self._stopped) > self._most_stopped:
                for number in self._stopped.keys() - set(next_in_line(self._most_stopped)):
                    self._remove(self._stopped.pop(number))
        elif trial.state is not TrialState.INTERRUPTED:
            self._remove(trial.digest)

    def clear(self) -> None:
        """Remove all: the search is at its end."""
        rmtree(self._folder, ignore_errors=True)  # there may be none

    def _remove(self, digest: str) -> None:
        rmtree(self._folder / digest, ignore_errors=True)  # as above
