"""What a study's speed-ups are counted from. Studies of before have no row: theirs is the uncompressed model in float32."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "slimfront_reference",
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("precision", sa.String(16), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("deployments", sa.JSON, nullable=False),
        sa.Column("moments", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("study_id", name="pk_slimfront_reference"),
        sa.ForeignKeyConstraint(["study_id"], ["slimfront_study.id"], name="fk_slimfront_reference_study_id"),
    )


def downgrade() -> None:
    op.drop_table("slimfront_reference")
