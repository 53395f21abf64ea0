"""A worker in a process of a Ray node: what runs there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import ArtifactsError, describe_exception
from ...core.interrupts import ignore_interrupts
from ...core.threads import usable_threads
from ...hardware_profiles.bench.bench import cores_for_workers
from ...hardware_profiles.profiling.fingerprint import versions
from ...hardware_profiles.runtimes.base import get_runtime
from ...workloads.load import settle_in
from ..proposal import Proposal
from ..trials.artifacts_folder import unwritable, why_unwritable
from ..trials.worker import Stage, Worker
from ..trials.worker_setup import WorkerSetup
from .base import Task
from .crash_report import crash_reported
from .shipment import Files, Shipment, arrived, files_of, own_folder, saved_by


@dataclass(frozen=True)
class Ready:
    """A worker has everything that trials need.

    Attributes:
        versions: of what it measures with.
        folder: for its own files; None where it writes to the driver's.
    """

    versions: Mapping[str, str]
    folder: Path | None


@dataclass(frozen=True)
class Answer:
    """What a worker found in one stage.

    Attributes:
        stage: None after a trial's last.
        files: of the trial, where the driver cannot read them.
        seconds: that the stage took.
        checkpoints: files of the trial's recovery where it was saved just now and the driver cannot read them.
        broken: what fails with the uncompressed model here too, where the trial failed before any has come to its end; else None.
    """

    stage: Stage | None
    files: Files
    seconds: float
    checkpoints: Files
    broken: str | None = None


class RayWorker:
    """Holds model, data and bench from its start on, and runs one trial after the other; a call is one stage."""

    def __init__(self) -> None:
        ignore_interrupts()  # Ctrl-C is the driver's to handle
        self._folder: Path | None = None
        self._works = False

    def start(self, setup: WorkerSetup, sharing: int, shipment: Shipment | None) -> Ready | str:
        """Make everything ready for the first trial; or why that cannot be.

        Args:
            sharing: how many workers share this node's cores.
            shipment: what the driver's node has and this one has not.
        """
        try:
            threads = usable_threads(cores_for_workers(setup.target)) // sharing
            setup = replace(setup, threads=max(1, int(setup.compute.cpus or threads)))
            if shipment is not None:
                self._folder = own_folder()
                setup = shipment.setup_in(self._folder, setup)
            settle_in(setup.base_folder)  # Ray starts its processes in a folder of its own
            self._worker = Worker(setup)
            if shipment is not None:
                shipment.require_same(self._worker.workload)
                self._try_out(setup)
            self._worker.warm_up()
            return Ready(versions(get_runtime(setup.target.runtime)), self._folder)
        except BaseException as error:  # the user's code may raise anything
            return describe_exception(error)

    def begin(self, task: Task, files: Files, checkpoints: Files) -> Answer:
        """The first stage of a task; one that had not come to its end is given up.

        Args:
            files, checkpoints: what the task names, for a worker that cannot read the driver's files.
        """
        self._task = task if self._folder is None else arrived(task, files, checkpoints, self._folder)
        self._spent_s = 0.0
        self._stages = self._task.stages(self._worker)
        return self.proceed()

    def proceed(self) -> Answer:
        """The next stage of the task."""
        began, task = time.monotonic(), self._task
        with crash_reported(task.folder, task.left_s(self._spent_s), task.memory_gb):
            stage = next(self._stages, None)
        is_far = self._folder is not None
        files = files_of(stage, task.folder) if is_far else {}
        seconds = time.monotonic() - began
        self._spent_s += seconds
        return Answer(stage, files, seconds, saved_by(task, stage) if is_far else {}, self._why_broken(stage))

    def _why_broken(self, stage: Stage | None) -> str | None:
        """As `Answer.broken`: policies may be bad, or what this worker has is."""
        proposal = self._task
        if self._works or stage is None or stage.fault is not None or not isinstance(proposal, Proposal):
            return None
        if stage.name == "failed":
            with crash_reported(proposal.folder, proposal.limit_s, proposal.memory_gb):
                try:
                    self._worker.check_set_up(proposal.policy)
                except BaseException as error:  # the user's code may raise anything
                    return describe_exception(error)
        self._works = stage.name == "failed" or (stage.name in ("scored", "recovered") and stage.final)
        return None

    def ping(self) -> None:
        """Nothing: whether there is an answer is the answer."""

    def close(self) -> None:
        """End the bench's process, and remove the worker's own files."""
        self._worker.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # the next worker here tries again

    def _try_out(self, setup: WorkerSetup) -> None:
        """Run the reference's artifact over a batch of data, and write a file as large.

        Raises:
            ArtifactsError: the file cannot be written.
        """
        assert setup.reference is not None
        assert self._folder is not None
        self._worker.try_reference()
        if (problem := why_unwritable(self._folder, setup.reference.artifact.bytes)) is not None:
            raise ArtifactsError(unwritable(self._folder, problem))
