"""Trials of a study as arrays: encoded once each, in the order of their numbers."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .designer import Choices, CompletedTrial, Outcome, TransferredTrial
from .dimensions import RECOVERY_KIND, SearchDimension, encode, most_below
from .feasibility import Feasibility
from .learned_trials import LearnedTrials
from .surrogate.surrogate import History, Surrogate, damage_of_drop, log_damage

MOST_FAILED = 100
"""What fails is learned from this many failed trials, the newest."""

Keys = Callable[[np.ndarray], list[bytes]]
"""Maps codes [n, knobs] to what distinguishes policies: two rows of equal keys are one policy."""


class TrialLog:
    """What was tried.

    Args:
        dimensions: of the codes.
        keys: by default the codes themselves.
        signs: -1 for each maximised objective, else 1.

    Attributes:
        ended: trials that completed or were pruned, as far as they are learned from; `left_out` counts the others. failed: those
            that failed, the newest. Both are ordered by number.
        pending: codes of what runs, shape [running, knobs].
    """

    def __init__(
        self, dimensions: Sequence[SearchDimension], keys: Keys | None = None, signs: Sequence[int] = (1, 1)
    ) -> None:
        self.dimensions = list(dimensions)
        self._keys = keys or codes_as_keys
        self._learned = LearnedTrials(signs)
        self.failed: list[CompletedTrial] = []
        self._codes: dict[int, np.ndarray] = {}
        self._ended_keys: set[bytes] = set()
        self.pending = self._rows([])

    def update(self, completed: Iterable[CompletedTrial], running: Sequence[Choices] = ()) -> None:
        """Add trials that have ended, and replace what runs."""
        added = list(completed)
        self._codes.update({trial.number: encode(self.dimensions, trial.choices) for trial in added})
        self._learned.add(trial for trial in added if trial.outcome is not Outcome.FAILED)
        for trial in added:
            if trial.outcome is Outcome.FAILED:
                insort(self.failed, trial, key=_number)
        del self.failed[:-MOST_FAILED]
        if added:
            self._ended_keys |= set(self._keys(self._rows([self._codes[trial.number] for trial in added])))
        self.pending = self._rows([encode(self.dimensions, choices) for choices in running])

    def start(self, codes: np.ndarray) -> None:
        """Add codes [knobs] to what runs."""
        self.pending = np.concatenate([self.pending, codes[None]])

    @property
    def ended(self) -> list[CompletedTrial]:
        return self._learned.trials

    @property
    def left_out(self) -> int:
        return self._learned.left_out

    @property
    def codes(self) -> np.ndarray:
        """Codes [ended, knobs] of the trials in `ended`."""
        return self._rows([self._codes[trial.number] for trial in self.ended])

    @property
    def tried(self) -> set[bytes]:
        """Keys of every policy that ended, failed or runs."""
        return self._ended_keys | set(self._keys(self.pending))

    def feasibility(self) -> Feasibility | None:
        """A model of what fails; None where nothing has."""
        if not self.failed:
            return None
        codes = self._rows([self._codes[trial.number] for trial in [*self.ended, *self.failed]])
        return Feasibility(codes, np.arange(len(codes)) >= len(self.ended))

    def trained_codes(self) -> np.ndarray:
        """Codes [ended, knobs] at which damages were measured: of a stopped trial with as much recovery as it had."""
        codes = self.codes
        for index, knob in enumerate(self.dimensions):
            if knob.kind == RECOVERY_KIND:
                for row, trial in enumerate(self.ended):
                    if trial.epochs is not None:
                        codes[row, index] = most_below(knob.choices, trial.epochs)
        return codes

    def _rows(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        return np.array(codes, dtype=int).reshape(-1, len(self.dimensions))


def history_of(log: TrialLog, surrogate: Surrogate, implied: frozenset[str]) -> History:
    """The ended trials as the surrogate learns from them.

    Args:
        implied: names of constraints that are left out.
    """
    raw = np.array([_final_values(trial, surrogate.roles) for trial in log.ended], dtype=float)
    values = surrogate.scaled(raw.reshape(-1, len(surrogate.roles)))
    constraints = {name for trial in log.ended for name in trial.violations} - implied
    return History(
        log.trained_codes(),
        _damage(log.ended, values[:, surrogate.roles.index("quality")]),
        values,
        {name: np.array([trial.violations.get(name, np.nan) for trial in log.ended]) for name in sorted(constraints)},
        log.left_out,
    )


def with_transferred(history: History, transferred: Sequence[TransferredTrial], surrogate: Surrogate) -> History:
    """`history` and, after it, trials of other studies; their violations are not known."""
    if not transferred:
        return history
    codes = np.array([encode(surrogate.dimensions, trial.choices) for trial in transferred])
    damage = np.array([np.nan if trial.damage is None else log_damage(trial.damage) for trial in transferred])
    values = surrogate.scaled(np.array([trial.values for trial in transferred], dtype=float))
    unknown = np.full(len(codes), np.nan)
    return History(
        np.concatenate([history.codes, codes]),
        np.concatenate([history.damage, damage]),
        np.concatenate([history.values, values]),
        {name: np.concatenate([judged, unknown]) for name, judged in history.violations.items()},
        history.left_out,
    )


def codes_as_keys(codes: np.ndarray) -> list[bytes]:
    """Keys [n] that distinguish any two different rows of codes [n, knobs]."""
    return [row.tobytes() for row in codes]


def _number(trial: CompletedTrial) -> int:
    return trial.number


def _final_values(trial: CompletedTrial, roles: Sequence[object]) -> Sequence[float]:
    """A trial's objectives; of one that was pruned only those that recovery would not have changed."""
    values = trial.values or (np.nan,) * len(roles)
    if trial.outcome is Outcome.COMPLETE:
        return values
    return [np.nan if role == "quality" else value for role, value in zip(roles, values, strict=True)]


def _damage(trials: Sequence[CompletedTrial], quality: np.ndarray) -> np.ndarray:
    """Log damage [n] where it was measured, else a guess from how far the quality [n] is below the best one."""
    best = np.nanmin(quality, initial=np.inf)
    return np.array([
        log_damage(trial.damage) if trial.damage is not None
        else damage_of_drop(value - best) if np.isfinite(value) else np.nan
        for trial, value in zip(trials, quality, strict=True)
    ])  # fmt: skip
