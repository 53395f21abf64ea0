"""What a worker is asked for at the end of a search: to score artifacts on a part of the test split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

S_co = TypeVar("S_co", covariant=True)


class Confirming(Protocol[S_co]):
    """A worker as its tasks see it; `trials.worker.Worker` is one."""

    def confirm(self, task: ScoringTask) -> Iterator[S_co]:
        """Score what the task names, a stage at a time."""
        ...


@dataclass(frozen=True)
class ScoringTask:
    """Artifacts of trials to score on a part of the test split, next to the reference, whose outputs are kept only meanwhile.

    Attributes:
        number: of the task.
        start, stop: the samples of the part.
        artifacts: number of the trial -> its artifact.
        folder: for what the worker prints, and for the reference's outputs; the caller removes it.
        limit_s: seconds after which scoring one of the artifacts is given up.
        memory_gb: as of a `Proposal`.
    """

    number: int
    start: int
    stop: int
    artifacts: Mapping[int, Path]
    folder: Path
    limit_s: float | None = None
    memory_gb: float | None = None

    what = "the scoring"

    def stages(self, worker: Confirming[S_co]) -> Iterator[S_co]:
        """Run it: a stage for the reference, then one for each artifact in order."""
        return worker.confirm(self)

    def left_s(self, spent_s: float) -> float | None:
        """The seconds for the next artifact."""
        return self.limit_s
