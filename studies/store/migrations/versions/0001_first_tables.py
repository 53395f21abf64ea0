"""The first tables: studies, trials, measurements, fronts, artifacts, targets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_study_and_target()
    _create_trial()
    _create_measurement()
    _create_front()
    _create_artifact()


def downgrade() -> None:
    for table in ("artifact", "front_member", "front", "measurement", "trial", "target", "study"):
        op.drop_table(f"slimfront_{table}")


def _moment(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _reference(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"slimfront_{to}.id"], name=f"fk_slimfront_{table}_{column}")


def _create_study_and_target() -> None:
    op.create_table(
        "slimfront_study",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("workload_fingerprint", sa.String(255), nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("machine", sa.JSON, nullable=False),
        _moment("created"),
        sa.PrimaryKeyConstraint("id", name="pk_slimfront_study"),
        sa.UniqueConstraint("name", name="uq_slimfront_study_name"),
    )
    op.create_table(
        "slimfront_target",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("card", sa.JSON, nullable=False),
        sa.Column("fingerprint", sa.JSON, nullable=False),
        _moment("measured_at"),
        sa.PrimaryKeyConstraint("id", name="pk_slimfront_target"),
        sa.UniqueConstraint("name", name="uq_slimfront_target_name"),
    )


def _create_trial() -> None:
    op.create_table(
        "slimfront_trial",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("worker", sa.Text),
        sa.Column("retry_of", sa.Integer),
        _moment("started"),
        _moment("finished", nullable=True),
        sa.Column("violations", sa.JSON),
        sa.PrimaryKeyConstraint("id", name="pk_slimfront_trial"),
        sa.UniqueConstraint("study_id", "number", name="uq_slimfront_trial_study_id_number"),
        sa.CheckConstraint("state IN ('running', 'complete', 'infeasible', 'failed')", name="ck_slimfront_trial_state"),
        _reference("trial", "study_id", "study"),
    )
    op.create_index("ix_slimfront_trial_study_id_state", "slimfront_trial", ["study_id", "state"])
    op.create_index("ix_slimfront_trial_study_id_digest", "slimfront_trial", ["study_id", "digest"])


def _create_measurement() -> None:
    op.create_table(
        "slimfront_measurement",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("trial_id", sa.Integer),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("low", sa.Double, nullable=False),
        sa.Column("high", sa.Double, nullable=False),
        sa.Column("unit", sa.String(32), nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("noisy", sa.Boolean, nullable=False),
        sa.Column("rung", sa.Integer, nullable=False),
        sa.Column("target", sa.Text),
        _moment("made_at"),
        sa.PrimaryKeyConstraint("id", name="pk_slimfront_measurement"),
        _reference("measurement", "study_id", "study"),
        _reference("measurement", "trial_id", "trial"),
    )
    for column in ("trial_id", "name"):
        index = f"ix_slimfront_measurement_study_id_{column}"
        op.create_index(index, "slimfront_measurement", ["study_id", column])


def _create_front() -> None:
    op.create_table(
        "slimfront_front",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("hypervolume", sa.Double, nullable=False),
        sa.Column("trials", sa.Integer, nullable=False),
        _moment("made_at"),
        sa.PrimaryKeyConstraint("id", name="pk_slimfront_front"),
        _reference("front", "study_id", "study"),
    )
    op.create_index("ix_slimfront_front_study_id", "slimfront_front", ["study_id"])
    op.create_table(
        "slimfront_front_member",
        sa.Column("front_id", sa.Integer, nullable=False),
        sa.Column("trial_id", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("front_id", "trial_id", name="pk_slimfront_front_member"),
        _reference("front_member", "front_id", "front"),
        _reference("front_member", "trial_id", "trial"),
    )


def _create_artifact() -> None:
    op.create_table(
        "slimfront_artifact",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("trial_id", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("path", sa.String(1024), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        _moment("made_at"),
        sa.PrimaryKeyConstraint("id", name="pk_slimfront_artifact"),
        sa.UniqueConstraint("trial_id", "path", name="uq_slimfront_artifact_trial_id_path"),
        _reference("artifact", "trial_id", "trial"),
    )
