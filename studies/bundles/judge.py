"""What a bundle is scored by: a workload that the user names, or a study in their own database; never what the bundle names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...core.errors import UserError
from ...hardware_profiles.runtimes.base import Artifact
from ...workloads.load import load_workload, workload_fingerprint
from ...workloads.workload import Workload
from ..store.store import Store
from ..study_file.load import study_named
from ..study_file.spec import StudySpec
from .bundle import Bundle
from .export import REFERENCE


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


def judge_of_workload(reference: str, base: Path) -> Judge:
    """The workload of a study file, or one by its name; `base` is where a relative `file.py:function` starts.

    Raises:
        UserError: it cannot be had.
    """
    spec = study_named(reference)
    return _judge(spec) if spec else _judged_by(load_workload(reference, {}, base))


def judge_of_study(store: Store, name: str, bundle: Bundle) -> Judge:
    """The workload of the study that made `bundle`.

    Raises:
        UserError: no such study, or its trial's artifact is not the bundle's model.
    """
    number, listed = bundle.card.trial, bundle.listed(bundle.artifact("model"))
    spec = store.get_study(name).spec
    made = {artifact.kind: artifact for artifact in store.artifacts(name, number)}
    if "model" not in made or made["model"].sha256 != listed:
        raise UserError(
            f"study {name} did not make {bundle.folder}: trial {number}'s model there is another; give --workload instead"
        )
    model = Path(made["model"].path)
    return _judge(spec, frozenset([listed, *_digest(model.parent / REFERENCE / model.name)]))


def _judge(spec: StudySpec, made_here: frozenset[str] = frozenset()) -> Judge:
    return _judged_by(load_workload(spec.workload, spec.workload_options, spec.base_folder), made_here)


def _judged_by(workload: Workload, made_here: frozenset[str] = frozenset()) -> Judge:
    return Judge(workload, workload_fingerprint(workload), made_here)


def _digest(path: Path) -> list[str]:
    return [Artifact.of(path).sha256] if path.is_file() else []
