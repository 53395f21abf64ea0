"""Multi-objective asynchronous successive halving: which trials are worth more training.

At each rung a trial is compared with all that have been there before; it goes on if it is among the best 1 / reduction of
them. The order is by non-dominated rank, and within a rank by an epsilon-net: the point farthest from those before it comes
next, so that those that go on are spread over the front (Schmucker, Donini, Zafar, Salinas & Archambeau 2021, "Multi-objective
Asynchronous Successive Halving", arXiv:2106.12639). No trial waits for another: each stops or goes on the moment it arrives.
One that stopped early on may turn out to be among the best once more have come: `best` lists those that would go on now (promotion, as in
Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934, at any time one asks).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np


@dataclass(frozen=True)
class HalvingDecision:
    """How a trial stands at a rung.

    Attributes:
        place: from 1, among the `of` trials that have been there; the best `kept` go on.
    """

    place: int
    of: int
    kept: int

    @property
    def is_promising(self) -> bool:
        """Whether the trial goes on."""
        return self.place <= self.kept


class SuccessiveHalving:
    """The results at each rung, and the decision on each trial that arrives.

    Args:
        signs: -1 for each maximised objective, else 1.
        reduction: one of so many goes on; the first so many at a rung always do.
    """

    def __init__(self, signs: Sequence[int], reduction: int) -> None:
        self._signs, self._reduction = np.array(signs), reduction
        self._rungs: dict[int, list[np.ndarray]] = defaultdict(list)

    def arrive(self, rung: int, values: Sequence[float]) -> HalvingDecision:
        """Note a trial's objectives at a rung, and judge it against those noted before."""
        results = self._rungs[rung]
        results.append(self._signs * np.asarray(values, dtype=float))
        return HalvingDecision(place_of_last(np.stack(results)) + 1, len(results), self._kept(len(results)))

    def best(self, rung: int) -> list[int]:
        """Of all that have been at a rung, in the order they came (from 0), those that would go on now, the best first."""
        return self.order(rung)[: self._kept(len(self._rungs[rung]))]

    def order(self, rung: int) -> list[int]:
        """All that have been at a rung, in the order they came (from 0), the best first."""
        results = self._rungs[rung]
        return np.argsort(priorities(np.stack(results))).tolist() if results else []

    def _kept(self, of: int) -> int:
        return of if of <= self._reduction else math.ceil(of / self._reduction)


def priorities(points: np.ndarray) -> np.ndarray:
    """Place of each point, from 0, in the order of non-dominated ranks and of the epsilon-net within them.

    Args:
        points: shape [n, objectives], less is better.
    """
    scaled, ranks = _scaled(points), moocore.pareto_rank(points)
    order = [index for rank in np.unique(ranks) for index in _spread_out(scaled, np.flatnonzero(ranks == rank))]
    places = np.empty(len(points), dtype=int)
    places[order] = np.arange(len(points))
    return places


def place_of_last(points: np.ndarray) -> int:
    """`priorities` of the last of the points alone: of the others only those of its rank are put in order."""
    ranks = moocore.pareto_rank(points)
    members = np.flatnonzero(ranks == ranks[-1])
    return int((ranks < ranks[-1]).sum()) + _spread_out(_scaled(points), members).index(len(points) - 1)


def _scaled(points: np.ndarray) -> np.ndarray:
    span = np.ptp(points, axis=0)
    return (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)


def _spread_out(scaled: np.ndarray, members: np.ndarray) -> list[int]:
    """`members` in the order of an epsilon-net that begins with the one nearest to the best of all objectives."""
    points = scaled[members]
    taken = [int(np.linalg.norm(points, axis=1).argmin())]
    gaps = np.full(len(members), np.inf)
    while len(taken) < len(members):
        gaps = np.minimum(gaps, np.linalg.norm(points - points[taken[-1]], axis=1))
        gaps[taken[-1]] = -np.inf
        taken.append(int(gaps.argmax()))
    return members[taken].tolist()
