"""How much single choices damage a study's model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "slimfront_sensitivity",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("knob", sa.Text, nullable=False),
        sa.Column("choice", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kl", sa.Double, nullable=False),
        sa.Column("low", sa.Double, nullable=False),
        sa.Column("high", sa.Double, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("source", sa.Text, nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_slimfront_sensitivity"),
        sa.ForeignKeyConstraint(["study_id"], ["slimfront_study.id"], name="fk_slimfront_sensitivity_study_id"),
    )
    op.create_index("ix_slimfront_sensitivity_study_id", "slimfront_sensitivity", ["study_id"])


def downgrade() -> None:
    op.drop_table("slimfront_sensitivity")
