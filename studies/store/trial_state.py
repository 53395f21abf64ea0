"""How a trial stands: the states that the database, the reports and the documents of the commands share."""

from __future__ import annotations

from enum import StrEnum


class TrialState(StrEnum):
    """The state of a trial; its reason, where it has one, is for readers alone."""

    RUNNING = "running"
    """It has not ended, or its driver was killed and the study was not opened since."""

    COMPLETE = "complete"
    """It ran to its end and met every constraint."""

    INFEASIBLE = "infeasible"
    """It violates a constraint."""

    PRUNED = "pruned"
    """Its recovery was not worth finishing: successive halving stopped it at a rung."""

    FAILED = "failed"
    """It broke."""

    INTERRUPTED = "interrupted"
    """Its search ended before it did; its policy is tried again, and no budget is charged for it."""

    @property
    def has_ended(self) -> bool:
        """Whether it does not run."""
        return self is not TrialState.RUNNING

    @property
    def has_result(self) -> bool:
        """Whether something was learned of its policy: neither failed, nor interrupted, nor running."""
        return self in (TrialState.COMPLETE, TrialState.INFEASIBLE, TrialState.PRUNED)
