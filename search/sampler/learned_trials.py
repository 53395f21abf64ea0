"""Which trials of a long study a surrogate learns from: as many as it can, then those that say most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import moocore
import numpy as np

from .designer import CompletedTrial, Outcome

MOST = 320
"""A surrogate learns from this many trials: what a proposal takes grows with them, and after that no more."""

ROOM = 32
"""Trials are selected anew after so many more: a selection changes what was fitted."""

BEST_SHARE = 0.5
"""This share of the selected trials are those nearest to the front."""


class LearnedTrials:
    """The trials that a surrogate learns from, by number.

    All are until there are more than `MOST` and `ROOM`. Then half of those kept are the ones of the best non-dominated ranks, which a
    proposal is likely to resemble; the others lie evenly between the first and the newest, so that every choice stays known from
    somewhere, the newer ones more densely with each selection.

    Args:
        signs: -1 for each maximised objective, else 1.

    Attributes:
        trials: those that are learned from; `left_out` counts the others.
    """

    def __init__(self, signs: Sequence[int]) -> None:
        self._signs = np.array(signs, dtype=float)
        self.trials: list[CompletedTrial] = []
        self.left_out = 0

    def add(self, ended: Iterable[CompletedTrial]) -> None:
        """Take trials that have ended."""
        self.trials = sorted([*self.trials, *ended], key=lambda trial: trial.number)
        if len(self.trials) > MOST + ROOM:
            kept = self._selected()
            self.left_out += len(self.trials) - len(kept)
            self.trials = [self.trials[index] for index in kept]

    def _selected(self) -> list[int]:
        """Places of those kept."""
        best = self._best()[: int(MOST * BEST_SHARE)]
        others = np.setdiff1d(np.arange(len(self.trials)), best)
        spread = np.linspace(0, len(others) - 1, MOST - len(best)).round().astype(int)
        return sorted([*best, *others[spread].tolist()])

    def _best(self) -> list[int]:
        """Places of the trials that completed within all constraints: by rank, the newest of a rank first."""
        values = [_final(trial, len(self._signs)) for trial in self.trials]
        places = np.array([place for place, final in enumerate(values) if final is not None], dtype=int)
        if not len(places):
            return []
        ranks = moocore.pareto_rank(np.array([values[place] for place in places]) * self._signs)
        return places[np.lexsort((-places, ranks))].tolist()


def _final(trial: CompletedTrial, objectives: int) -> tuple[float, ...] | None:
    """The objectives of a trial that may be on the front."""
    is_fine = trial.outcome is Outcome.COMPLETE and all(excess <= 0 for excess in trial.violations.values())
    known = trial.values is not None and len(trial.values) == objectives and not np.isnan(trial.values).any()
    return trial.values if is_fine and known else None
