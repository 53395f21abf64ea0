"""Which trials the budget of a study pays for."""

from __future__ import annotations

from collections.abc import Sequence

from ..store.records import FREE_DIGESTS, TrialSummary
from ..store.trial_state import TrialState


def ended(trials: Sequence[TrialSummary]) -> int:
    """Trials that the budget has paid for: those that came to an end, one that was pruned and went on later counted once.

    Interrupted trials are free, and so is what failed before the search had its first result (`has_begun`).
    """
    pruned = {trial.number for trial in trials if trial.state is TrialState.PRUNED}
    begun = has_begun(trials)
    return sum(trial.retry_of not in pruned for trial in trials if is_paid(trial, begun))


def is_paid(trial: TrialSummary, begun: bool) -> bool:
    """Whether the budget pays for a trial of a search that has `begun`, or has not."""
    return trial.state.has_result or (begun and trial.state is TrialState.FAILED)


def has_begun(trials: Sequence[TrialSummary]) -> bool:
    """Whether any trial that a worker ran had a result.

    What failed before says more about the set-up than about policies: the next run tries those policies again.
    """
    return any(ran(trial) and trial.state.has_result for trial in trials)


def ran(trial: TrialSummary) -> bool:
    """Whether a worker ran the trial to its end; the uncompressed model's takes the baseline's figures over."""
    ended = trial.state.has_result or trial.state is TrialState.FAILED
    return ended and trial.digest not in FREE_DIGESTS
