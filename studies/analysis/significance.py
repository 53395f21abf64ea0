"""Significance of a front's points: which of them were lucky, and which are on it by noise only.

A search picks its front by the scores on one split, so the best of many are partly the luckiest, which the test split,
scored once at the end, reveals. A front of measured values also lists points that lead by less than the measurements resolve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...core.measurement import Measurement
from ...core.statistics import ONE_SIDED_NORMAL_QUANTILE, standard_error
from ..wording import short_text
from .front import Objective, Point, better_somewhere, dominates_beyond_noise

MOST_LINES = 6


def is_lucky(measured: Mapping[str, Measurement]) -> bool | None:
    """Whether the accuracy drop is greater on the test split than on the search-validation split, beyond the noise of both.

    A one-sided z-test at 5 % on the difference of the two drops, whose samples are disjoint. None where the test split
    was not scored.
    """
    seen, unseen = measured.get("accuracy_drop"), measured.get("test_accuracy_drop")
    if seen is None or unseen is None:
        return None
    error = math.hypot(*(standard_error(m.low, m.high) for m in (seen, unseen)))
    return unseen.value - seen.value > ONE_SIDED_NORMAL_QUANTILE * error


def beaten_by(point: Point, points: Sequence[Point], objectives: Sequence[Objective]) -> list[int]:
    """Trials among `points` that beat `point` in one objective beyond noise, and lose to it in none beyond noise."""
    return [other.trial for other in points if dominates_beyond_noise(other, point, objectives)]


def beaten(points: Sequence[Point], objectives: Sequence[Objective]) -> dict[int, list[int]]:
    """`beaten_by` of every one of the points, by its trial."""
    better = better_somewhere(points, points, objectives)
    beats = better & ~better.T
    return {point.trial: [points[int(i)].trial for i in np.flatnonzero(beats[:, j])] for j, point in enumerate(points)}


def twins(points: Sequence[Point], objectives: Sequence[Objective]) -> list[tuple[int, int]]:
    """Pairs of trials whose intervals touch in every objective."""
    better = better_somewhere(points, points, objectives)
    pairs = np.argwhere(np.triu(~(better | better.T), k=1))
    return [(points[first].trial, points[second].trial) for first, second in pairs]


def doubts(points: Sequence[Point], objectives: Sequence[Objective]) -> list[str]:
    """A sentence for every doubt about a front, the worst first; the last one counts what was left out."""
    lines = [_lucky_text(point) for point in points if is_lucky(point.measurements)]
    lines += [
        f"trial {trial} leads by noise only: beyond noise, {_dominating(better)}"
        for trial, better in beaten(points, objectives).items()
        if better
    ]
    lines += [f"trials {a} and {b} are the same within the noise" for a, b in twins(points, objectives)]
    left = len(lines) - MOST_LINES
    return lines if left <= 0 else [*lines[:MOST_LINES], f"and {left} more of the kind"]


def _dominating(better: Sequence[int]) -> str:
    if len(better) == 1:
        return f"trial {better[0]} dominates it"
    return f"trials {', '.join(map(str, better))} dominate it"


def _lucky_text(point: Point) -> str:
    seen, unseen = (point.measurements[name] for name in ("accuracy_drop", "test_accuracy_drop"))
    drops = [short_text(m.value, m.unit) for m in (seen, unseen)]
    return (
        f"trial {point.trial} was lucky: accuracy_drop {drops[0]} where it was searched, {drops[1]} on the test split"
    )
