"""What the accuracy of a study is. Studies of before have none: theirs is a fraction, of which more is better."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("slimfront_study", sa.Column("quality", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    op.drop_column("slimfront_study", "quality")
