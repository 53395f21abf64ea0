"""Convergence of a search: how the hypervolume grew, and what as many trials again would probably add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..store.records import FrontSize

LEAST_GROWTH = 0.005
"""The smallest relative growth of the hypervolume that counts as growth."""

FEWEST_TRIALS = 16
"""The fewest trials from which growth is extrapolated."""


@dataclass(frozen=True)
class Outlook:
    """Growth of the hypervolume over doublings of the number of trials.

    Attributes:
        trials: so far.
        last: growth over the last half of them, as a fraction of what there was.
        expected: growth that as many trials again would bring if it went on shrinking from doubling to doubling as it
            did over the last two; an extrapolation, no bound.
    """

    trials: int
    last: float
    expected: float

    def __str__(self) -> str:
        return (
            f"the last {self.trials - self.trials // 2} trials grew the hypervolume by {self.last:.1%}; "
            f"{self.trials} more would probably add about {self.expected:.1%}"
        )


def outlook(fronts: Sequence[FrontSize], trials: int) -> Outlook | None:
    """The outlook after `trials` ended trials; None where there are too few, or there was no front to grow yet."""
    if trials < FEWEST_TRIALS:
        return None
    quarter, half, now = (hypervolume_at(fronts, count) for count in (trials // 4, trials // 2, trials))
    if half <= 0:
        return None
    last = now / half - 1
    before = half / quarter - 1 if quarter > 0 else None
    shrinking = min(1.0, last / before) if before else 1.0
    return Outlook(trials, last, last * shrinking)


def stalled(fronts: Sequence[FrontSize], trials: int, patience: int) -> bool:
    """Whether the last `patience` of `trials` ended trials grew an existing front by less than `LEAST_GROWTH`."""
    before = hypervolume_at(fronts, trials - patience)
    return before > 0 and hypervolume_at(fronts, trials) / before - 1 < LEAST_GROWTH


def hypervolume_at(fronts: Sequence[FrontSize], trials: int) -> float:
    """Hypervolume after so many ended trials; 0 before the first front."""
    return next((front.hypervolume for front in reversed(fronts) if front.trials <= trials), 0.0)
