"""The files of a trial made again from its policy, where they were not kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch

from ...hardware_profiles.runtimes.base import Artifact
from ...spaces.policies.float_precision import FLOAT32
from ...studies.files.study_files import StudyFiles
from ...studies.store.records import TrialRecord
from ...studies.store.store import Store
from ...studies.store.trial_state import TrialState
from ...workloads.workload import Workload
from .baseline import lower_reference
from .prepared_study import PreparedStudy, prepare
from .recovered import RecoveredWeights
from .worker import Worker, WorkerSetup

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
    spec, threads = prepared.spec, torch.get_num_threads()
    source = recovered.of(trial.policy) if trial.state is not TrialState.PRUNED else None
    noted = _THREADS.search(trial.worker or "")
    setup = WorkerSetup(
        workload=spec.workload,
        workload_options=spec.workload_options,
        base_folder=spec.base_folder,
        target=prepared.target,
        groups=prepared.groups,
        seed=spec.seed,
        batch_size=spec.recovery.batch_size,
        threads=int(noted[1]) if noted else prepared.context.threads,
        metrics=spec.metrics,
        rungs=spec.rungs,
    )
    worker = Worker(setup, prepared.context.workload)
    try:
        return worker.make_again(trial.policy, folder, source and source.path, trial.rung)
    finally:
        worker.close()
        torch.set_num_threads(threads)
