"""What a worker needs on a node other than the driver's, and how a trial's files come back: no folder is shared."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from ...core.errors import WorkloadError
from ...evaluators.evaluator import Reference
from ...hardware_profiles.runtimes.base import Artifact
from ...workloads.workload import SPLITS, Workload
from ..confirmation.scoring_task import ScoringTask
from ..proposal import Proposal
from ..trials.shared_pickle import SharedPickle
from ..trials.worker import Stage
from ..trials.worker_setup import WorkerSetup
from .base import Task

if TYPE_CHECKING:
    from ..driver import Search  # for annotations only: workers do without the database

Files = Mapping[str, np.ndarray]
"""Relative path -> content, bytes [n]: arrays lie in Ray's object store once a node."""

PREFIX = "slimfront-worker-"


@dataclass(frozen=True)
class Shipment:
    """What every worker on a node other than the driver's is sent.

    Attributes:
        workload: as the copy of the study file's folder has it.
        weights: of the model as the driver has it; None where the workload itself is sent.
        sizes: of the splits.
        reference: the files of the uncompressed model.
    """

    workload: str
    weights: SharedPickle | None
    sizes: Mapping[str, int]
    reference: Files

    @classmethod
    def of(cls, search: Search) -> Shipment:
        """That of a search whose reference is known."""
        prepared = search.prepared
        workload = prepared.context.workload
        weights = None if prepared.pickled_workload is not None else SharedPickle.of(workload.model.state_dict())
        sizes = {split: len(getattr(workload, split)) for split in SPLITS}
        name = _relative(prepared.spec.workload, prepared.spec.base_folder)
        return cls(name, weights, sizes, packed(search.reference.artifact.path.parent))

    def setup_in(self, folder: Path, setup: WorkerSetup) -> WorkerSetup:
        """The setup of a worker whose own files are in `folder`, and whose current folder is the copy of the study file's."""
        assert setup.reference is not None
        place = folder / "reference"
        unpack(self.reference, place)
        return replace(setup, workload=self.workload, base_folder=Path.cwd(), reference=_moved(setup.reference, place))

    def require_same(self, workload: Workload) -> None:
        """Give the model that a node has loaded the driver's weights, and require that its data are as many.

        Raises:
            WorkloadError: it is another model, or has more or fewer data.
        """
        for split, size in self.sizes.items():
            if (found := len(getattr(workload, split))) != size:
                raise WorkloadError(f"its {split} data have {found} samples here, and {size} where the search runs")
        if self.weights is None:
            return
        try:
            workload.model.load_state_dict(self.weights.load())
        except RuntimeError as error:
            raise WorkloadError(f"its model differs from the one where the search runs: {error}") from error


def own_folder() -> Path:
    """A new folder for this process's files; those of processes that were killed are removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = old.name.removeprefix(PREFIX).split("-")[0]
        if old.is_dir() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)  # it may be another user's
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def packed(folder: Path) -> Files:
    """The files in a folder and those within."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): np.fromfile(path, np.uint8) for path in found}


def unpack(files: Files, folder: Path) -> None:
    """Write files into a folder, which is made."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(written := path.with_name(f"{path.name}.arriving"))
        written.replace(path)


def sent_with(task: Task) -> tuple[Files, Files]:
    """The file of recovered weights that a trial starts from, and its checkpoints; or the artifacts that are to be scored."""
    if isinstance(task, ScoringTask):
        return {_name_of(trial, path): np.fromfile(path, np.uint8) for trial, path in task.artifacts.items()}, {}
    recovered, saved = task.recovered, task.checkpoints
    weights = {} if recovered is None else {recovered.name: np.fromfile(recovered, np.uint8)}
    return weights, packed(saved) if saved is not None else {}


def arrived(task: Task, files: Files, checkpoints: Files, folder: Path) -> Task:
    """A task with what `sent_with` found in a worker's own folder; the files of the task before go."""
    for name in ("trials", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)  # they are not there before the first
    here = folder / "trials"
    unpack(files, here)
    own = here / task.folder.name
    if isinstance(task, ScoringTask):
        artifacts = {trial: here / _name_of(trial, path) for trial, path in task.artifacts.items()}
        return replace(task, folder=own, artifacts=artifacts)
    unpack(checkpoints, saved := folder / "checkpoints")
    weights = here / task.recovered.name if task.recovered is not None else None
    return replace(task, folder=own, recovered=weights, checkpoints=saved)


def saved_by(task: Task, stage: Stage | None) -> Files:
    """The checkpoints of a trial whose recovery was saved at a stage, and goes on; else none."""
    saved = task.checkpoints if isinstance(task, Proposal) else None
    return packed(saved) if saved is not None and is_saved(stage) else {}


def files_of(stage: Stage | None, folder: Path) -> Files:
    """The files that a stage has of its trial; at the trial's end also what it wrote for people."""
    paths = [artifact.path for artifact in stage.artifacts.values()] if stage is not None else []
    if stage is None or stage.reason is not None:
        paths += _texts(folder)
    return {path.name: np.fromfile(path, np.uint8) for path in paths}


def is_saved(stage: Stage | None) -> bool:
    """Whether a trial's recovery was saved at a stage, and goes on."""
    return stage is not None and (stage.name == "checkpointed" or (stage.name == "recovered" and not stage.final))


def left_behind(folder: Path) -> Files:
    """What the trial of a process that died wrote for people; the process's folder is removed."""
    found = {path.name: np.fromfile(path, np.uint8) for trial in folder.glob("trials/*") for path in _texts(trial)}
    shutil.rmtree(folder, ignore_errors=True)  # the next worker here tries again
    return found


def delivered(stage: Stage | None, files: Files, folder: Path) -> Stage | None:
    """A stage whose files are in its trial's folder on this machine."""
    unpack(files, folder)
    if stage is None:
        return None
    here = {kind: Artifact.of(folder / artifact.path.name) for kind, artifact in stage.artifacts.items()}
    return replace(stage, artifacts=here)


def _texts(folder: Path) -> list[Path]:
    return [path for pattern in ("*.txt", "*.log") for path in folder.glob(pattern)]


def _name_of(trial: int, artifact: Path) -> str:
    return f"artifacts/{trial}/{artifact.name}"


def _relative(reference: str, base: Path) -> str:
    """A workload's name in which a file within the study file's folder is named from there, and any other as it is on every node."""
    place, colon, name = reference.rpartition(":")
    if not (place.endswith(".py") or "/" in place):
        return reference
    file, base = (base / os.path.expanduser(place)).resolve(), base.resolve()
    return f"{file.relative_to(base) if file.is_relative_to(base) else file}{colon}{name}"


def _moved(reference: Reference, folder: Path) -> Reference:
    """The reference with its files where they are now."""
    old, scores = reference.artifact.path.parent, reference.validation
    if scores is not None and scores.kept is not None:
        files = tuple(folder / path.relative_to(old) for path in scores.kept.files)
        scores = replace(scores, kept=replace(scores.kept, files=files))
    artifact = Artifact.of(folder / reference.artifact.path.name)
    return replace(reference, artifact=artifact, validation=scores)
