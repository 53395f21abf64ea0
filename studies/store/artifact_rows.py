"""The part of the store that holds where files are; what they hold is in an artifact store, see `study_files`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ..artifacts.open_store import is_url
from . import tables
from .database import Database, sqlite_file
from .patience import patiently
from .queries import find_study, find_trial
from .records import ArtifactPlace, ArtifactRecord


@patiently
class ArtifactRows:
    """The methods of `Store` that read and write rows of files; the rules of `Store` hold for them.

    Args:
        database: open.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def artifact_place(self, study: str) -> ArtifactPlace | None:
        """Where the study's files lie, with an absolute root; None of one that was not searched since they lie by content."""
        with self._database.reading() as session:
            row = find_study(session, study)
            if row.artifacts_root is None or row.artifacts_prefix is None:
                return None
            return ArtifactPlace(self._absolute(row.artifacts_root), row.artifacts_prefix)

    def set_artifact_place(self, study: str, place: ArtifactPlace) -> None:
        """Store where the study's files lie; the root is absolute or a URL."""
        with self._database.writing() as session:
            row = find_study(session, study)
            row.artifacts_root, row.artifacts_prefix = self._relative(place.root), place.prefix

    def record_artifact(
        self, study: str, number: int | None, kind: str, path: str, sha256: str, size: int, key: str | None = None
    ) -> str | None:
        """Store the row of a file; one of the same path is replaced.

        Args:
            number: of the trial; None for the study's reference.
            path: the file's name.
            size: in bytes.
            key: in the study's artifact store; without, `path` says where the file is.

        Returns:
            The key that the replaced row had and that no other row has, so that nobody needs its object.
        """
        with self._database.writing() as session:
            study_id, trial_id = _ids(session, study, number)
            row = session.scalar(select(tables.Artifact).filter_by(study_id=study_id, trial_id=trial_id, path=path))
            before = None if row is None else row.key
            row = row or tables.Artifact(study_id=study_id, trial_id=trial_id, path=path)
            row.kind, row.sha256, row.bytes, row.key = kind, sha256, size, key
            row.made_at, row.removed_at = tables.now(), None
            session.add(row)
            session.flush()
            return next(iter(_unused(session, study_id, [before])), None)

    def artifacts(self, study: str, number: int | None) -> list[ArtifactRecord]:
        """The files of a trial, or of the study's reference where `number` is None, oldest first; also those not kept any more."""
        with self._database.reading() as session:
            study_id, trial_id = _ids(session, study, number)
            return _records(session, tables.Artifact.study_id == study_id, tables.Artifact.trial_id == trial_id)

    def remove_artifacts(self, study: str, number: int | None, kinds: Collection[str]) -> list[ArtifactRecord]:
        """Note that a trial's files of these kinds are not kept any more.

        Returns:
            Those whose content nobody needs now; of several rows with one key, one.
        """
        with self._database.writing() as session:
            study_id, trial_id = _ids(session, study, number)
            mine = tables.Artifact.study_id == study_id, tables.Artifact.trial_id == trial_id
            wanted = select(tables.Artifact).where(*mine, tables.Artifact.kind.in_(kinds), _is_kept())
            rows = session.scalars(wanted).all()
            found = {row.key or row.path: _record(row) for row in rows}
            for row in rows:
                row.removed_at = tables.now()
            session.flush()
            unused = _unused(session, study_id, (record.key for record in found.values()))
            return [record for record in found.values() if record.key is None or record.key in unused]

    def kept_artifacts(self, study: str) -> list[tuple[int | None, ArtifactRecord]]:
        """Every file of a study that is kept, with the number of its trial, or None where it is the reference's."""
        with self._database.reading() as session:
            rows = session.execute(
                select(tables.Trial.number, tables.Artifact)
                .outerjoin(tables.Trial, tables.Trial.id == tables.Artifact.trial_id)
                .where(tables.Artifact.study_id == find_study(session, study).id, _is_kept())
                .order_by(tables.Artifact.id)
            )
            return [(number, _record(row)) for number, row in rows]

    def _absolute(self, root: str) -> str:
        folder = self.folder
        return root if is_url(root) or folder is None else str(folder / root)

    def _relative(self, root: str) -> str:
        """A folder within the database's own relative to that: both can be moved together."""
        folder = self.folder
        if is_url(root) or folder is None or not Path(root).is_relative_to(folder):
            return root
        return os.path.relpath(root, folder)

    @property
    def folder(self) -> Path | None:
        """The folder of a SQLite database; None of others."""
        file = sqlite_file(self._database.url)
        return file.resolve().parent if file is not None else None


def _ids(session: Session, study: str, number: int | None) -> tuple[int, int | None]:
    study_id = find_study(session, study).id
    return study_id, None if number is None else find_trial(session, study, number).id


def _is_kept() -> ColumnElement[bool]:
    return tables.Artifact.removed_at.is_(None)


def _unused(session: Session, study_id: int, keys: Iterable[str | None]) -> set[str]:
    """Those of the keys that no kept row of the study has."""
    asked = {key for key in keys if key is not None}
    wanted = select(func.distinct(tables.Artifact.key)).where(
        tables.Artifact.study_id == study_id, tables.Artifact.key.in_(asked), _is_kept()
    )
    return asked - {key for key in session.scalars(wanted) if key is not None} if asked else set()


def _records(session: Session, *wanted: ColumnElement[bool]) -> list[ArtifactRecord]:
    return [
        _record(row) for row in session.scalars(select(tables.Artifact).where(*wanted).order_by(tables.Artifact.id))
    ]


def _record(row: tables.Artifact) -> ArtifactRecord:
    removed: datetime | None = row.removed_at
    return ArtifactRecord(row.kind, row.path, row.sha256, row.bytes, row.made_at, row.key, removed)
