"""What a worker is asked for during a search: to try a policy. Workers import this, and nothing of the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..spaces.policies.policy import Policy

if TYPE_CHECKING:
    from .trials.worker import Stage, Worker


@dataclass(frozen=True)
class Proposal:
    """A policy to try; its files go to `folder`.

    Attributes:
        recovered: weights of the same structure after the same recovery, which need not be done again; None without.
        limit_s: seconds after which the trial is ended: the study's `trial_timeout_s`, or what the search has left where that is
            less; a trial ended for the latter is tried again.
        checkpoints: folder that its recovery is saved in, and taken up from.
        memory_gb: memory that the trial's process may take, in 10^9 bytes: the study's `trial_memory_gb`.
    """

    number: int
    policy: Policy
    folder: Path
    recovered: Path | None = None
    limit_s: float | None = None
    memory_gb: float | None = None
    checkpoints: Path | None = None

    what = "the trial"

    def stages(self, worker: Worker) -> Iterator[Stage]:
        """Run the trial, stage by stage."""
        return worker.run(self.policy, self.folder, self.recovered, self.checkpoints)

    def left_s(self, spent_s: float) -> float | None:
        """The seconds for its other stages when the first have taken so many."""
        return None if self.limit_s is None else self.limit_s - spent_s
