"""The database's tables as SQLAlchemy models, all prefixed `slimfront_` so that they can share a database with Optuna's.

A change here needs a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ...core.texts import plain_text
from .trial_state import TrialState

PREFIX = "slimfront_"
VERSION_TABLE = "slimfront_alembic_version"
REVISION = "0008"
"""The newest migration, which these models describe; revisions are zero-padded and so sort as text."""

STATES = tuple(state.value for state in TrialState)


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware moment in UTC; SQLite has no time zones and would give it back naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: object) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class PlainText(TypeDecorator[str]):
    """Text that anyone may have written, such as an exception's: stored escaped and cut, as PostgreSQL takes no NUL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        return None if value is None else plain_text(value)


class Base(DeclarativeBase):
    """All of slimfront's tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (read by SQLAlchemy, never written)
        datetime: UtcDateTime,
        float: Double,
        dict[str, Any]: JSON,
    }


class Study(Base):
    """A study.

    Attributes:
        quality: what its `accuracy` is, the fields of `metrics.Quality`; NULL before that is measured, and of studies
            of before there was another than a fraction.
        artifacts_root: folder or URL of artifacts as the last search had it, a folder within the one of a SQLite file relative to
            that; `artifacts_prefix` is the study's own part of it. NULL of studies of before files lay by content.
    """

    __tablename__ = "slimfront_study"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    spec: Mapped[str] = mapped_column(Text)
    workload_fingerprint: Mapped[str] = mapped_column(String(255))
    versions: Mapped[dict[str, Any]]
    machine: Mapped[dict[str, Any]]
    remark: Mapped[str | None] = mapped_column(PlainText)
    created: Mapped[datetime] = mapped_column(default=now)
    quality: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    artifacts_root: Mapped[str | None] = mapped_column(Text)
    artifacts_prefix: Mapped[str | None] = mapped_column(String(255))


class Reference(Base):
    """What a study's speed-ups are counted from. A study of before there was a choice gets a row when it continues.

    Attributes:
        precision: of the uncompressed model's floats, as a policy names it.
        deployments: a list of {"precision", "computes_in", "is_default", "figures": [measurement]}.
        moments: a list of {"at": ISO 8601, "latency": measurement}.
    """

    __tablename__ = "slimfront_reference"

    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id), primary_key=True)
    precision: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(PlainText)
    reason: Mapped[str] = mapped_column(PlainText)
    deployments: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    moments: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


class Trial(Base):
    """A trial.

    Attributes:
        rung: that it was pruned at; NULL of all others.
        driver_died: whether its search's process died while it ran.
        violations: a list of {"metric", "constraint", "excess"}; an excess above 0 is a violation.
    """

    __tablename__ = "slimfront_trial"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        Index(None, "study_id", "state"),
        Index(None, "study_id", "digest"),
        CheckConstraint(f"state IN {STATES}", name="state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id))
    number: Mapped[int]
    policy: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=TrialState.RUNNING.value)
    reason: Mapped[str | None] = mapped_column(PlainText)
    worker: Mapped[str | None] = mapped_column(PlainText)
    retry_of: Mapped[int | None]
    started: Mapped[datetime] = mapped_column(default=now)
    finished: Mapped[datetime | None]
    rung: Mapped[int | None]
    driver_died: Mapped[bool] = mapped_column(default=False, server_default=false())
    violations: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))


class MeasurementRow(Base):
    """One measured number. Without a trial it belongs to the study's baseline.

    Rows are only ever added, but what is proportional to the reference's latency follows it when that is found at a quieter moment.
    """

    __tablename__ = "slimfront_measurement"
    __table_args__ = (Index(None, "study_id", "trial_id"), Index(None, "study_id", "name"))

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id))
    trial_id: Mapped[int | None] = mapped_column(ForeignKey(Trial.id))
    name: Mapped[str] = mapped_column(String(64))
    value: Mapped[float]
    low: Mapped[float]
    high: Mapped[float]
    unit: Mapped[str] = mapped_column(String(32))
    n: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[str] = mapped_column(PlainText)
    noisy: Mapped[bool]
    rung: Mapped[int]
    target: Mapped[str | None] = mapped_column(PlainText)
    made_at: Mapped[datetime] = mapped_column(default=now)


class Front(Base):
    """A snapshot of a study's front, written each time its members change."""

    __tablename__ = "slimfront_front"
    __table_args__ = (Index(None, "study_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id))
    hypervolume: Mapped[float]
    trials: Mapped[int]
    made_at: Mapped[datetime] = mapped_column(default=now)


class FrontMember(Base):
    __tablename__ = "slimfront_front_member"

    front_id: Mapped[int] = mapped_column(ForeignKey(Front.id), primary_key=True)
    trial_id: Mapped[int] = mapped_column(ForeignKey(Trial.id), primary_key=True)


class Artifact(Base):
    """A file of a trial; without a trial it belongs to the study's reference.

    Attributes:
        path: the file's name, unique within its trial; of rows without a `key` the path it was recorded with.
        key: where the file lies in the study's artifact store; several rows may share one.
        removed_at: when it was let go; the row stays, so that what is made again can be held against it.
    """

    __tablename__ = "slimfront_artifact"
    __table_args__ = (UniqueConstraint("trial_id", "path"), Index(None, "study_id", "key"))

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id))
    trial_id: Mapped[int | None] = mapped_column(ForeignKey(Trial.id))
    kind: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(1024))
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str | None] = mapped_column(String(128))
    made_at: Mapped[datetime] = mapped_column(default=now)
    removed_at: Mapped[datetime | None]


class Lease(Base):
    """Which process searches a study. The key is the study's name, since the lease is taken before the study's row exists.

    Moments are seconds since 1970 on the database's own clock, since those of several machines differ.
    """

    __tablename__ = "slimfront_lease"

    study: Mapped[str] = mapped_column(String(255), primary_key=True)
    owner: Mapped[str] = mapped_column(String(255))
    heartbeat: Mapped[float]
    expires: Mapped[float]


class Sensitivity(Base):
    """The damage that one choice of one knob does alone."""

    __tablename__ = "slimfront_sensitivity"
    __table_args__ = (Index(None, "study_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id))
    knob: Mapped[str] = mapped_column(Text)
    choice: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    kl: Mapped[float]
    low: Mapped[float]
    high: Mapped[float]
    n: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
    source: Mapped[str | None] = mapped_column(PlainText)
    made_at: Mapped[datetime] = mapped_column(default=now)


class Target(Base):
    __tablename__ = "slimfront_target"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    card: Mapped[dict[str, Any]]
    fingerprint: Mapped[dict[str, Any]]
    measured_at: Mapped[datetime] = mapped_column(default=now)
