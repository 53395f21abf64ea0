"""Removes the files of a study that are of no use: those that it does not keep, and what killed processes left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ...compression.recovery.checkpoint import SHARED
from ...studies.analysis.newest_front import front_points
from ...studies.artifacts.artifact_store import StoredObject
from ...studies.artifacts.open_store import work_folder
from ...studies.files.study_files import StudyFiles
from ...studies.store.store import Store
from ...studies.study_file.spec import Keep
from ..sole_driver import sole_driver
from ..trials.kept_checkpoints import FOLDER

Unwanted = Mapping[int, set[str]]
"""Trial -> the kinds of its files that the study does not keep."""

LOG_SUFFIX = ".log"
"""How names of files end that are for readers; they stay."""


@dataclass(frozen=True)
class Collected:
    """What was removed of one study, or would be.

    Attributes:
        files: how many were of no use; they took `bytes`.
    """

    study: str
    keep: Keep
    files: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def collect(store: Store, study: str, keep: Keep | None = None, *, dry_run: bool = False) -> Collected:
    """Remove the files of one study that are of no use.

    Args:
        keep: which trials keep their files; None leaves it to the study.
        dry_run: remove nothing.

    Raises:
        StoreError: there is no such study, or it is being searched.
        ArtifactsError: its artifact store cannot be reached.
    """
    keep = store.get_study(study).spec.keep if keep is None else keep
    with sole_driver(store, study):
        files = StudyFiles(store, study)
        unwanted = _unwanted(store, files, keep)
        objects, leftovers = _orphans(store, files, unwanted), _leftovers(store, files)
        sizes = [*(each.bytes for each in objects), *(path.stat().st_size for path in leftovers)]
        sizes += _sizes_of_before(store, study, unwanted)
        if not dry_run:
            _remove(files, unwanted, objects, leftovers)
    return Collected(study, keep, len(sizes), sum(sizes))


def _unwanted(store: Store, files: StudyFiles, keep: Keep) -> Unwanted:
    front = {point.trial for point in front_points(store, store.get_study(files.study))} if keep == "front" else set()
    found: dict[int, set[str]] = defaultdict(set)
    for number, kind in files.held():
        if keep != "all" and number not in front:
            found[number].add(kind)
    return found


def _orphans(store: Store, files: StudyFiles, unwanted: Unwanted) -> list[StoredObject]:
    """Objects that no row names, once the unwanted ones do not."""
    if files.place is None:
        return []
    rows = store.kept_artifacts(files.study)
    named = {record.key for number, record in rows if number is None or record.kind not in unwanted.get(number, ())}
    return [each for each in files.contents.objects() if each.key not in named]


def _sizes_of_before(store: Store, study: str, unwanted: Unwanted) -> list[int]:
    """Bytes of unwanted files that lie in folders of trials, as in studies of before."""
    rows = store.kept_artifacts(study)
    return [r.bytes for n, r in rows if n is not None and r.key is None and r.kind in unwanted.get(n, ())]


def _leftovers(store: Store, files: StudyFiles) -> list[Path]:
    """What trials made that have ended, and that was not put into the store; and stored outputs of the teacher."""
    if files.place is None:
        return []
    folder = work_folder(files.place.root, files.place.prefix)
    recorded = {Path(record.path) for _, record in store.kept_artifacts(files.study) if record.key is None}
    made = chain(folder.glob("trial-*/*"), folder.glob(f"{FOLDER}/{SHARED}/*"))
    found = (path for path in made if path.suffix != LOG_SUFFIX and path not in recorded)
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _remove(files: StudyFiles, unwanted: Unwanted, objects: list[StoredObject], leftovers: list[Path]) -> None:
    for number, kinds in unwanted.items():
        files.remove(number, kinds)
    for each in objects:
        files.contents.delete(each.key)
    for path in leftovers:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
