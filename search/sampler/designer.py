"""The protocol of everything that proposes policies: it is updated with trials and suggests choices, and knows no database.

After Vizier's `Designer` (Song et al. 2022, arXiv:2207.13676).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

Choices = Mapping[str, Any]
"""The value chosen in each search dimension, by the dimension's name."""


class Outcome(Enum):
    """How a trial ended."""

    COMPLETE = "complete"
    """Every objective has its final value."""
    PRUNED = "pruned"
    """A constraint or a rung ended the trial early: its quality, if known, is not final."""
    FAILED = "failed"
    """The policy itself caused an error."""


@dataclass(frozen=True)
class CompletedTrial:
    """A trial that has ended.

    Attributes:
        number: orders the trials of a study, whichever ended first.
        values: one per objective, NaN where it is not known; None where none is.
        damage: KL divergence from the uncompressed model's outputs, in nats; None where it was not measured.
        violations: how far the trial is beyond each constraint that was judged; positive where violated.
        epochs: epochs of recovery after which the damage was measured, where they are fewer than the choices say.
    """

    number: int
    choices: Choices
    outcome: Outcome
    values: tuple[float, ...] | None = None
    damage: float | None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    epochs: float | None = None


@dataclass(frozen=True)
class TransferredTrial:
    """A trial of another study of the same model.

    Attributes:
        choices: one per search dimension.
        damage: KL divergence from the uncompressed model's outputs, in nats; None where it is not known.
        values: per objective, the value where it holds in this study too; None where it does not.
    """

    choices: Choices
    damage: float | None
    values: tuple[float | None, ...]


class Designer(Protocol):
    """Proposes points of a search space, given what trials found."""

    def update(self, completed: Sequence[CompletedTrial], running: Sequence[Choices]) -> None:
        """Learn from trials.

        Args:
            completed: trials that have ended since the last update.
            running: choices of all trials that run now.
        """

    def suggest(self, count: int = 1) -> list[Choices]:
        """Propose `count` points, fewer where the space has no more; they count as running until the next update."""
        ...
