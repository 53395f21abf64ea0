"""What a bundle is scored by: a workload that the user names, or a study in their own database; never what the bundle names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ArtifactGoneError, UserError
from ...hardware_profiles.runtimes.base import Artifact
from ...workloads.load import adopt_workload, load_workload, workload_fingerprint
from ...workloads.workload import Workload
from ..files.study_files import MODEL, StudyFiles
from ..store.records import ArtifactRecord
from ..store.store import Store
from ..study_file.load import study_named
from ..study_file.spec import StudySpec
from .bundle import Bundle


@dataclass(frozen=True)
class Judge:
    """The workload, and which files need no mistrust.

    Attributes:
        fingerprint: of the workload's model and data.
        made_here: sha256 of the files that a study of the user's own wrote.
    """

    workload: Workload
    fingerprint: str
    made_here: frozenset[str] = frozenset()


def judge_of_workload(workload: str | Workload, base: Path) -> Judge:
    """The workload itself, that of a study file, or one by its name; `base` is where a relative `file.py:function` starts.

    Raises:
        UserError: it cannot be had.
    """
    if isinstance(workload, Workload):
        return _judged_by(adopt_workload(workload, workload.name or "object", base))
    spec = study_named(workload)
    return _judge(spec) if spec else _judged_by(load_workload(workload, {}, base))


def judge_of_study(store: Store, name: str, bundle: Bundle, workload: Workload | None = None) -> Judge:
    """The workload of the study that made `bundle`.

    Args:
        workload: what the study was searched with, where it was given as an object.

    Raises:
        UserError: no such study, or its trial's artifact is not the bundle's model.
    """
    number, listed = bundle.card.trial, bundle.listed(bundle.artifact("model"))
    spec = store.get_study(name).spec
    files = StudyFiles(store, name)
    made = files.newest(number)
    if MODEL not in made or made[MODEL].sha256 != listed:
        raise UserError(
            f"study {name} did not make {bundle.folder}: trial {number}'s model there is another; give the workload instead"
        )
    made_here = frozenset([listed, *_reference_digest(files, made[MODEL])])
    if workload is not None:
        return _judged_by(adopt_workload(workload, spec.workload, spec.base_folder), made_here)
    return _judge(spec, made_here)


def _judge(spec: StudySpec, made_here: frozenset[str] = frozenset()) -> Judge:
    return _judged_by(load_workload(spec.workload, spec.workload_options, spec.base_folder), made_here)


def _judged_by(workload: Workload, made_here: frozenset[str] = frozenset()) -> Judge:
    return Judge(workload, workload_fingerprint(workload), made_here)


def _reference_digest(files: StudyFiles, model: ArtifactRecord) -> list[str]:
    """The digest of the reference's artifact, as long as it is kept."""
    try:
        return [Artifact.of(files.reference(model)).sha256]
    except ArtifactGoneError:
        return []
