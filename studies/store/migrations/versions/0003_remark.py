"""What is to be known of how a study is searched."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("slimfront_study", sa.Column("remark", sa.Text, nullable=True))


def downgrade() -> None:
    op.drop_column("slimfront_study", "remark")
