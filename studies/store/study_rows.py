"""The part of the store that is about studies as wholes: what is searched, the baseline, the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ...core.errors import StoreError
from ...core.measurement import Measurement
from ...core.metrics import Quality
from ..study_file.spec import StudySpec
from . import tables
from .changes import change_spec, delete_rows
from .database import Database
from .patience import patiently
from .queries import baseline_rows, find_study, study_record
from .records import TIMED, ReferenceRecord, StudyRecord
from .rescaling import rescale
from .rows import measurement_rows, reference_row, study_of


@patiently
class StudyRows:
    """The methods of `Store` that read and write studies; the rules of `Store` hold for them.

    Args:
        database: open.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_study(
        self, spec: StudySpec, workload_fingerprint: str, versions: Mapping[str, Any], machine: Mapping[str, Any]
    ) -> StudyRecord:
        """A new study, named as its spec says.

        Args:
            workload_fingerprint: identifies the model and data, to notice that they changed.
            versions: package -> version. machine: what it ran on. Both JSON values.

        Raises:
            StoreError: there is one of that name.
        """
        with self._database.writing() as session:
            if session.scalar(select(tables.Study.id).filter_by(name=spec.study)) is not None:
                raise StoreError(f"{self._database.name}: study {spec.study!r} already exists")
            row = tables.Study(
                name=spec.study,
                spec=spec.to_json(),
                workload_fingerprint=workload_fingerprint,
                versions=dict(versions),
                machine=dict(machine),
            )
            session.add(row)
        return study_of(row)

    def update_spec(self, spec: StudySpec) -> StudyRecord:
        """Continue a study with a changed file.

        Raises:
            StoreError: what may not change within a study did.
        """
        with self._database.writing() as session:
            row = find_study(session, spec.study)
            change_spec(row, spec)
            return study_record(session, row)

    def get_study(self, name: str) -> StudyRecord:
        """The study of that name."""
        with self._database.reading() as session:
            row = find_study(session, name)
            return study_record(session, row)

    def has_study(self, name: str) -> bool:
        """Whether there is a study of that name."""
        with self._database.reading() as session:
            return session.scalar(select(tables.Study.id).filter_by(name=name)) is not None

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""
        with self._database.reading() as session:
            rows = session.scalars(select(tables.Study).order_by(tables.Study.id)).all()
            return [study_record(session, row) for row in rows]

    def set_baseline(
        self,
        study: str,
        measurements: Sequence[Measurement],
        target: str,
        reference: ReferenceRecord | None = None,
        spec: StudySpec | None = None,
        quality: Quality | None = None,
        timed: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the reference's measurements, once: hypervolumes are only comparable over one baseline.

        Args:
            reference: what it is, and why it was chosen.
            spec: what is searched, where that depended on the choice.
            quality: what their accuracy is.
            timed: how latency was timed, as JSON values.

        Raises:
            StoreError: the study has its baseline.
        """
        with self._database.writing() as session:
            row = find_study(session, study)
            if baseline_rows(session, row):
                raise StoreError(f"study {study!r} has its baseline already")
            session.add_all(measurement_rows(measurements, study_id=row.id, rung=0, target=target))
            if reference is not None:
                session.add(reference_row(reference, row.id))
            if spec is not None:
                row.spec = spec.to_json()
            if quality is not None:
                row.quality = asdict(quality)
            if timed is not None:
                row.machine = {**row.machine, TIMED: dict(timed)}

    def put_reference(
        self,
        study: str,
        reference: ReferenceRecord,
        latency: Measurement | None = None,
        also: Callable[[Session, float], None] = lambda *_: None,
    ) -> None:
        """Replace what is stored of a study's reference, and have all that follows from its latency follow, all or nothing.

        Args:
            latency: the reference's `latency_ms` of a quieter moment; milliseconds of all trials, violations of constraints on
                them and hypervolumes are in its scale afterwards.
            also: changes what others keep of the study in this database, given the factor of milliseconds.
        """
        with self._database.writing() as session:
            row = find_study(session, study)
            session.merge(reference_row(reference, row.id))
            if latency is not None:
                rescale(session, row, latency, also)

    def delete_study(self, name: str) -> None:
        """Delete a study with all that is stored of it."""
        with self._database.writing() as session:
            delete_rows(session, find_study(session, name))

    def rename_study(self, old: str, new: str, also: Callable[[Session, str, str], None] = lambda *_: None) -> None:
        """Give a study another name, all or nothing.

        Args:
            also: renames what others keep of the study in this database.

        Raises:
            StoreError: there is a study of the new name.
            StudyFileError: the new name is none that a study file may have.
        """
        with self._database.writing() as session:
            row = find_study(session, old)
            if session.scalar(select(tables.Study.id).filter_by(name=new)) is not None:
                raise StoreError(f"{self._database.name}: study {new!r} already exists")
            row.spec = StudySpec.from_json(row.spec).renamed(new).to_json()
            row.name = new
            session.execute(update(tables.Sensitivity).filter_by(source=old).values(source=new))
            also(session, old, new)

    def set_remark(self, study: str, remark: str | None) -> None:
        """Store the remark of a study, a sentence about how it is searched; replaces the one before."""
        with self._database.writing() as session:
            find_study(session, study).remark = remark
