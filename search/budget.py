"""What a search may still spend: trials, patience and time, and which trials are charged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..core.metrics import is_confirmed
from ..hardware_profiles.runtimes.base import Artifact
from ..studies.analysis.budget_rules import has_begun, is_paid, ran
from ..studies.analysis.convergence import stalled
from ..studies.analysis.front import Point
from ..studies.reports.progress import reason_rows
from ..studies.store.records import TrialRecord
from ..studies.store.store import Store
from ..studies.store.trial_state import TrialState
from ..studies.study_file.spec import StudySpec
from .time_budget import TimeBudget
from .trials.artifacts_folder import DiskSpace

MAX_ANCHORS = 12
"""Anchors that are tried first, at most."""

FIRST_FAILURES = 8
"""Trials that fail before any has a result, after which a search stops. A broken set-up is found by then (`execution.worker_process`); and
anchors, which come first, differ in bits and in kinds of structure, so that these many failures are not the fault of one choice."""


class Budget:
    """The budget of one run of a study.

    Attributes:
        charged: trials of the study that were charged: those that ended, without interrupted ones and without those that
            continue one charged before.
        stopped_because: why the search cannot go on; None while it can.
        disk: the space for files of trials.

    Args:
        folder: of files at work. reference: the uncompressed model's artifact, by whose size trials are judged.
    """

    def __init__(self, spec: StudySpec, store: Store, time: TimeBudget, folder: Path, reference: Artifact) -> None:
        self._spec, self._store, self._time = spec, store, time
        self.disk = DiskSpace.of(folder, reference)
        self._durations: list[float] = []
        self._failed: list[TrialRecord] = []
        self._begun = False
        self.charged = 0
        self.stopped_because: str | None = None

    def resume(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Take up what earlier runs began; of their trials, those that the budget pays for."""
        self._begun = has_begun(trials)
        return [trial for trial in trials if is_paid(trial, self._begun)]

    def charge(self, trial: TrialRecord, *, is_free: bool) -> None:
        """Charge a trial that has ended.

        Args:
            is_free: it continues a trial that was charged before.
        """
        self.charged += not is_free
        if not ran(trial):
            return
        self._durations.append(trial.seconds)
        self._failed += [trial] if trial.state is TrialState.FAILED else []
        self._begun |= trial.state is not TrialState.FAILED
        if not self._begun and len(self._durations) >= FIRST_FAILURES:
            count, _, reason = reason_rows(self._failed)[0]
            self.stopped_because = f"the first {FIRST_FAILURES} trials all failed, {count} of them: {reason}"

    def is_spent(self, running: int) -> bool:
        """Whether no new policy is to be tried while `running` trials run: the trials or the patience are spent, or the disk is full."""
        trials = self._spec.budget.trials
        if (trials is not None and self.charged + running >= trials) or self._has_converged:
            return True
        if (problem := self.disk.problem(running)) is not None:
            self.stopped_because = problem
        return problem is not None

    def is_time_spent(self, front: Sequence[Point]) -> bool:
        """Whether no trial is to be started any more, so that the front can still be confirmed in time."""
        if math.isinf(self._time.left):
            return False
        unconfirmed = sum(not is_confirmed(point.measurements) for point in front)
        return self._time.is_spent(self._durations, unconfirmed)

    @property
    def limit_s(self) -> float | None:
        """Seconds that a trial which starts now may take; None without a limit."""
        limits = (self._spec.budget.trial_timeout_s, self._time.limit(self._durations))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def _has_converged(self) -> bool:
        patience = self._spec.budget.patience
        if patience is None or self.charged < MAX_ANCHORS + patience:
            return False
        trials = self._store.ended_trials(self._spec.study)
        return stalled(self._store.front_sizes(self._spec.study), trials, patience)
