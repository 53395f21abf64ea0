"""The files of a study: rows in the database, contents in an artifact store."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ...core.defaults import DEFAULT_ARTIFACTS
from ...core.errors import ArtifactGoneError, StoreError
from ..artifacts.artifact_store import ArtifactStore, key_of
from ..artifacts.open_store import is_url, new_prefix, open_artifact_store, work_folder
from ..store.records import ArtifactPlace, ArtifactRecord
from ..store.store import Store

MODEL = "model"
"""The kind of the artifact that a runtime loads: a trial's, or the reference's."""

WEIGHTS = "weights"
"""The kind of the float weights that a trial's artifact was made from."""

PACKED = "packed"
"""The kind of a trial's weights in the bits of its policy."""

PRECISIONS = "precisions"
"""The kind of the file of what a trial's layers ran in, layer -> precision as JSON: a result, kept as long as the trial."""

HEAVY = (MODEL, WEIGHTS, PACKED)
"""The kinds that can be made again from a trial's policy."""

REFERENCE = "reference"
"""The folder of the reference's files at work, next to those of trials."""

_OLD_FOLDER = re.compile(r"trial-\d{5,}|reference")


class StudyFiles:
    """What one study keeps of its trials and of its reference.

    Ownership: the study's driver puts and removes, any number of processes read meanwhile. Files are put before their rows
    are written, and removed after: a process that is killed in between leaves an object without a row, never the opposite.
    """

    def __init__(self, store: Store, study: str) -> None:
        self._store, self.study = store, study

    @cached_property
    def place(self) -> ArtifactPlace | None:
        """Where the files lie: where this database's user says they are now, if they are there, else as the row has it."""
        recorded, given = self._store.artifact_place(self.study), self._store.artifacts_root
        if recorded is None or given is None or given == recorded.root:
            return recorded
        moved = ArtifactPlace(given, recorded.prefix)
        return moved if _is_there(moved) else recorded

    @cached_property
    def contents(self) -> ArtifactStore:
        """The artifact store.

        Raises:
            StoreError: the study has none; it was not searched since files lie by content.
        """
        if self.place is None:
            raise StoreError(f"study {self.study!r} has no artifact store yet; the next search makes one")
        return open_artifact_store(self.place.root, self.place.prefix)

    def settle(self, root: str) -> None:
        """Have the files of the study lie in a folder or at a URL from now on.

        Raises:
            StoreError: it has files elsewhere.
        """
        before = self._store.artifact_place(self.study)
        place = ArtifactPlace(root, before.prefix if before is not None else new_prefix(self.study))
        if before is not None and before.root != root and _is_there(before) and not _is_there(place):
            raise StoreError(
                f"the artifacts of study {self.study!r} are in {before.root}; move them to {root}, or go on with the "
                "former as its folder of artifacts"
            )
        if place != before:
            self._store.set_artifact_place(self.study, place)
        self.__dict__.pop("place", None)
        self.__dict__.pop("contents", None)

    def put(self, number: int | None, kind: str, file: Path, sha256: str, size: int, *, take: bool) -> None:
        """Keep a file of a trial, or of the reference where `number` is None; one of the same name is replaced.

        Args:
            size: in bytes.
            take: as of `ArtifactStore.put`.
        """
        key = key_of(sha256, file.name)
        self.contents.put(file, key, take=take)
        unused = self._store.record_artifact(self.study, number, kind, file.name, sha256, size, key)
        if unused is not None:
            self.contents.delete(unused)

    def newest(self, number: int | None) -> Mapping[str, ArtifactRecord]:
        """The newest file of each kind of a trial or of the reference, also those that are not kept any more."""
        return {record.kind: record for record in self._store.artifacts(self.study, number)}

    def path(self, record: ArtifactRecord) -> Path:
        """The local file of a record, only to be read.

        Raises:
            ArtifactGoneError: it is not kept any more, or is not where it was.
        """
        if record.key is not None and (record.removed_at is None or self.contents.holds(record.key)):
            return self.contents.fetch(record.key)
        if record.removed_at is not None:
            raise ArtifactGoneError(f"{record.path} is not kept since {record.removed_at:%Y-%m-%d %H:%M}")
        path = self._old_path(record.path)
        if not path.is_file():
            raise ArtifactGoneError(f"{path}: no such file or directory")
        return path

    def found(self, number: int | None, kind: str) -> Path | None:
        """The local file of a kind of a trial, only to be read; None where there is none any more."""
        record = self.newest(number).get(kind)
        try:
            return None if record is None else self.path(record)
        except ArtifactGoneError:
            return None

    def reference(self, model: ArtifactRecord) -> Path:
        """The local file of the reference's artifact, only to be read.

        Args:
            model: of any trial; in a study of before, the reference lies in a folder next to the trial's.

        Raises:
            ArtifactGoneError: it is not where it was.
        """
        if (record := self.newest(None).get(MODEL)) is not None:
            return self.path(record)
        trial = Path(model.path)
        return self.path(
            replace(model, path=str(trial.parent.parent / REFERENCE / trial.name), key=None, removed_at=None)
        )

    def held(self) -> list[tuple[int, str]]:
        """The number and the kind of every file of a trial that is kept and can be made again."""
        kept = self._store.kept_artifacts(self.study)
        return [(number, record.kind) for number, record in kept if number is not None and record.kind in HEAVY]

    def remove(self, number: int, kinds: Collection[str] = HEAVY) -> int:
        """Let go of a trial's files of these kinds; returns the bytes that this freed."""
        removed = self._store.remove_artifacts(self.study, number, kinds)
        return sum(record.bytes for record in removed if self._delete(record))

    def _delete(self, record: ArtifactRecord) -> bool:
        if record.key is not None:
            self.contents.delete(record.key)
            return True
        path = self._old_path(record.path)
        # A row of before names any path: only what lies as a search put it is removed.
        is_ours = _OLD_FOLDER.fullmatch(path.parent.name) and path.parent.parent.name == self.study
        if not is_ours or path.is_symlink() or not path.is_file():
            return False
        path.unlink()
        return True

    def _old_path(self, recorded: str) -> Path:
        """The file of a row without a key: where it was, or in the same folders below where the study's files are now."""
        path = Path(recorded)
        given, folder = self._store.artifacts_root, self._store.folder
        roots = [given, self.place and self.place.root, folder, folder and folder / DEFAULT_ARTIFACTS]
        moved = [Path(root, *path.parts[-3:]) for root in roots if root and not is_url(str(root))]
        return next((each for each in (path, *moved) if each.is_file()), path)


def folder_at_work(store: Store, study: str, root: str) -> Path:
    """The local folder of a study's logs and files at work, whose artifacts are to lie at `root`."""
    before = store.artifact_place(study) if store.has_study(study) else None
    return work_folder(root, before.prefix if before is not None else new_prefix(study))


def _is_there(place: ArtifactPlace) -> bool:
    return next(iter(open_artifact_store(place.root, place.prefix).objects()), None) is not None
