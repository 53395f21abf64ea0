"""The files of a trial made again from its policy, where they were not kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from ...hardware_profiles.runtimes.base import Artifact
from ...spaces.policies.float_precision import FLOAT32
from ...spaces.policies.policy import Policy
from ...spaces.policies.resolved import effective_policy
from ...studies.files.study_files import StudyFiles
from ...studies.store.records import TrialRecord
from ...studies.store.store import Store
from ...studies.store.trial_state import TrialState
from ...workloads.workload import Workload
from .baseline import lower_reference
from .kept_files import keep
from .prepared_study import PreparedStudy, prepare
from .recovered import RecoveredWeights
from .worker import Worker, rung_of
from .worker_setup import WorkerSetup

_THREADS = re.compile(r", threads (\d+)$")


class Remaking:
    """A `Remaker` of one study: it prepares the study as a search does, once it is asked for something.

    Args:
        given: the workload, where the study was given it as an object.
    """

    def __init__(self, store: Store, study: str, given: Workload | None = None) -> None:
        self._store, self._study, self._given = store, study, given

    def trial(self, trial: TrialRecord, folder: Path) -> Mapping[str, Path]:
        """As `Remaker.trial`."""
        recovered = RecoveredWeights(StudyFiles(self._store, self._study), self._prepared.spec)
        for each in self._store.trials(self._study, TrialState.COMPLETE):
            recovered.offer(each)
        made = make_again(self._prepared, trial, folder, recovered)
        return {kind: artifact.path for kind, artifact in made.items()}

    def reference(self, folder: Path) -> Path:
        """As `Remaker.reference`."""
        reference = self._store.get_study(self._study).reference
        precision = FLOAT32 if reference is None else reference.precision
        return lower_reference(self._prepared.context, folder, precision).path

    @cached_property
    def _prepared(self) -> PreparedStudy:
        return prepare(self._store.get_study(self._study).spec, self._given)


def make_again(
    prepared: PreparedStudy, trial: TrialRecord, folder: Path, recovered: RecoveredWeights
) -> dict[str, Artifact]:
    """The files of a trial that has ended, compressed, recovered and lowered from its policy again.

    With the number of threads that its worker had: trained weights depend on it in their last bits.

    Args:
        recovered: what it may start from, as it may have done.
    """
    threads, noted = torch.get_num_threads(), _THREADS.search(trial.worker or "")
    source = recovered.of(trial.policy) if trial.state is not TrialState.PRUNED else None
    setup = WorkerSetup.of(prepared, int(noted[1]) if noted else prepared.context.threads)
    try:
        return _Remaker(setup, prepared.context.workload).made(trial, folder, source and source.path)
    finally:
        torch.set_num_threads(threads)


class _Remaker(Worker):
    """A worker without a bench, which runs the steps of a trial that make files and measures nothing."""

    def made(self, trial: TrialRecord, folder: Path, recovered: Path | None) -> dict[str, Artifact]:
        """The files of a trial, as far as its recovery went."""
        folder.mkdir(parents=True, exist_ok=True)
        original, policy = trial.policy, effective_policy(trial.policy)
        model = self._pruned(self.workload.model, original)
        self._reestimate(model, original)
        if policy.recovery.changes_weights:
            model = self._recovered(model, original, recovered, trial.rung)
        return keep(*self._lower(policy, model, folder), folder)

    def _recovered(self, model: nn.Module, original: Policy, recovered: Path | None, rung: int | None) -> nn.Module:
        """The model after its recovery, or where that was stopped at a rung, at that rung."""
        marks = self._marks(original)
        for trained, epochs in self._recoveries(original, model, marks, recovered, None):
            model = model if trained is None else trained
            if trained is not None and rung == rung_of(epochs, marks):
                break
        return model
