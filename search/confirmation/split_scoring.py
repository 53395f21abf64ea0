"""The scoring of artifacts on the test split, shared out among the slots of a runner."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from ...core.errors import EvaluationError
from ...evaluators.scores import Scores, joined_scores
from ...evaluators.tallies import counts_hits
from ..bookkeeping import MOST_RETRIES
from ..driver import Search
from ..events import Preparing
from ..trials.worker import Stage
from .scoring_task import ScoringTask

FEWEST_SAMPLES = 500
"""A part of the split has at least so many samples: a slot loads every artifact for each of its parts."""


@dataclass
class _Running:
    """A task that was handed out, and how many of its stages have come."""

    task: ScoringTask
    stages: int = 0

    @property
    def left(self) -> Sequence[int]:
        """The trials that it has not scored, in order."""
        return list(self.task.artifacts)[max(0, self.stages - 1) :]


class SplitScoring:
    """A `Work` of scoring artifacts and the reference on the test split.

    Each task is a part of the split, where the metric counts hits and samples are enough, and a share of the artifacts. What ends a
    task's process costs the artifact that was scored just then; the others of the task are handed out again.

    Args:
        artifacts: number of the trial -> its artifact.
        slots: how many tasks can run at once.
        folder: for files of tasks.

    Attributes:
        problems: trial -> why it cannot be scored.
    """

    def __init__(self, search: Search, artifacts: Mapping[int, Path], slots: int, folder: Path) -> None:
        self._search, self._artifacts, self._folder = search, artifacts, folder
        self._numbers = count()
        self._parts = _parts(search, slots)
        shares = _shares(list(artifacts), max(1, slots // len(self._parts)))
        self._queue = deque(self._task(part, share) for part in self._parts for share in shares)
        self._running: dict[int, _Running] = {}
        self._lost: Counter[tuple[int, tuple[int, ...]]] = Counter()
        self._reference: dict[int, Scores] = {}
        self._scores: dict[int, dict[int, Scores]] = defaultdict(dict)
        self.problems: dict[int, str] = {}

    @property
    def is_over(self) -> bool:
        """Whether every task was handed out."""
        return not self._queue

    @property
    def reference(self) -> Scores:
        """The reference's scores."""
        return joined_scores([self._reference[part.start] for part in self._parts])

    def of(self, trial: int) -> Scores:
        """The scores of a trial that has no problem."""
        return joined_scores([self._scores[trial][part.start] for part in self._parts])

    def propose(self) -> ScoringTask | None:
        """As `Work.propose`."""
        while self._queue:
            task = self._queue.popleft()
            left = {trial: path for trial, path in task.artifacts.items() if trial not in self.problems}
            if left:
                task = replace(task, artifacts=left)
                self._running[task.number] = _Running(task)
                return task
        return None

    def advance(self, number: int, stage: Stage) -> bool:
        """As `Work.advance`.

        Raises:
            EvaluationError: the reference cannot be scored.
        """
        running = self._running[number]
        if stage.reason is not None:
            self._fail(self._running.pop(number), stage)
            return False
        assert stage.scores is not None
        start = running.task.start
        if running.stages == 0:
            self._reference[start] = stage.scores
        else:
            self._scores[running.left[0]][start] = stage.scores
        running.stages += 1
        self._tell()
        return True

    def finish(self, number: int) -> None:
        """As `Work.finish`."""
        self._running.pop(number, None)

    def lose(self, number: int, reason: str) -> None:
        """As `Work.lose`; a task that was lost too often has its artifact fail."""
        running = self._running.pop(number)
        again = running.task.start, tuple(running.left)
        self._lost[again] += 1
        if self._lost[again] > MOST_RETRIES:
            self._fail(running, Stage("failed", reason=f"{reason}, {self._lost[again]} times"))
        else:
            self._queue.appendleft(self._task(range(running.task.start, running.task.stop), running.left))

    def _fail(self, running: _Running, stage: Stage) -> None:
        if running.stages == 0:
            raise EvaluationError(f"the uncompressed model cannot be scored on the test split: {stage.reason}")
        trial, *others = running.left
        self.problems[trial] = f"cannot be scored on the test split: {stage.reason}"
        self._search.kept.put(trial, stage.artifacts)
        if others:
            self._queue.appendleft(self._task(range(running.task.start, running.task.stop), others))

    def _task(self, part: range, trials: Sequence[int]) -> ScoringTask:
        number, budget = next(self._numbers), self._search.spec.budget
        artifacts = {trial: self._artifacts[trial] for trial in trials}
        limits = budget.trial_timeout_s, budget.trial_memory_gb
        return ScoringTask(number, part.start, part.stop, artifacts, self._folder / f"task-{number}", *limits)

    def _tell(self) -> None:
        done, total = sum(map(len, self._scores.values())), len(self._parts) * len(self._artifacts)
        self._search.tell(Preparing(f"scoring the front on the test split, {done / total:.0%}"))


def _parts(search: Search, slots: int) -> list[range]:
    """The parts that the test split is scored in; a batch is never divided."""
    workload, batch = search.prepared.context.workload, search.prepared.target.batch
    samples = len(workload.test)
    parts = min(slots, samples // FEWEST_SAMPLES) if counts_hits(workload.metric) else 1
    each = batch * -(-samples // (batch * max(1, parts)))
    return [range(start, min(start + each, samples)) for start in range(0, samples, each)]


def _shares(trials: Sequence[int], most: int) -> list[Sequence[int]]:
    """The trials in at most so many shares, none of them empty."""
    return [trials[first::most] for first in range(min(most, len(trials)))]
