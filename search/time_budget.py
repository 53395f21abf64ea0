"""The seconds a run of a search may take: counted from the user's command, the last trial and the confirmation included."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

SENSITIVITY_SHARE = 0.1
"""Part of the seconds that measuring single choices may take."""

CONFIRMATION_SHARE = 0.25
"""Most that is set aside of the seconds for the confirmation of the front."""

GRACE_SECONDS = 60.0
"""How much longer than the budget a trial may run at least before it is taken for hung."""

GRACE_TRIALS = 3.0
"""How many median trials longer than the budget it may run, where that is more."""


class TimeBudget:
    """The time of one run.

    Args:
        seconds: that the run may take; None for no bound.
        started: `time.monotonic()` when the user gave the command.
        confirmation: seconds that confirming one point of the front takes.
    """

    def __init__(self, seconds: float | None, started: float, confirmation: float) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._started, self._confirmation = started, confirmation

    @property
    def left(self) -> float:
        """Seconds left, negative beyond the budget; infinite without one."""
        return self._seconds - (time.monotonic() - self._started)

    @property
    def for_sensitivity(self) -> float:
        """Seconds that measuring single choices may take."""
        return self._seconds * SENSITIVITY_SHARE

    def is_spent(self, durations: Sequence[float], points: int) -> bool:
        """Whether a trial as long as the median one would leave no time to confirm the front.

        Args:
            durations: of the trials that have ended, in seconds.
            points: of the front that are not confirmed yet.
        """
        confirmation = min(points * self._confirmation, self._seconds * CONFIRMATION_SHARE)
        return self.left <= confirmation + _typical(durations)

    def limit(self, durations: Sequence[float]) -> float | None:
        """Seconds after which a trial that starts now is taken for hung; None without a budget."""
        if math.isinf(self._seconds):
            return None
        return max(self.left, 0.0) + max(GRACE_SECONDS, GRACE_TRIALS * _typical(durations))


def _typical(durations: Sequence[float]) -> float:
    return statistics.median(durations) if durations else 0.0
