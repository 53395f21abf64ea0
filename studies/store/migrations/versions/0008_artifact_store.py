"""Files lie in a store by content: rows hold its keys, and a study where the store is.

Rows of before keep the path they were recorded with, and no key; they are read as they were. A row without a trial is of the
study's reference, as with measurements.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ARTIFACT = sa.table("slimfront_artifact", sa.column("trial_id", sa.Integer), sa.column("study_id", sa.Integer))
TRIAL = sa.table("slimfront_trial", sa.column("id", sa.Integer), sa.column("study_id", sa.Integer))


def upgrade() -> None:
    op.add_column("slimfront_study", sa.Column("artifacts_root", sa.Text(), nullable=True))
    op.add_column("slimfront_study", sa.Column("artifacts_prefix", sa.String(255), nullable=True))
    with op.batch_alter_table("slimfront_artifact") as table:
        table.add_column(sa.Column("study_id", sa.Integer(), nullable=True))
        table.add_column(sa.Column("key", sa.String(128), nullable=True))
        table.add_column(sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))
        table.alter_column("trial_id", existing_type=sa.Integer(), nullable=True)
    study = sa.select(TRIAL.c.study_id).where(TRIAL.c.id == ARTIFACT.c.trial_id).scalar_subquery()
    op.get_bind().execute(sa.update(ARTIFACT).values(study_id=study))
    with op.batch_alter_table("slimfront_artifact") as table:
        table.alter_column("study_id", existing_type=sa.Integer(), nullable=False)
        table.create_foreign_key(
            "fk_slimfront_artifact_study_id_slimfront_study", "slimfront_study", ["study_id"], ["id"]
        )
        table.create_index("ix_slimfront_artifact_study_id_key", ["study_id", "key"])


def downgrade() -> None:
    op.get_bind().execute(sa.delete(ARTIFACT).where(ARTIFACT.c.trial_id.is_(None)))
    with op.batch_alter_table("slimfront_artifact") as table:
        table.drop_index("ix_slimfront_artifact_study_id_key")
        table.drop_constraint("fk_slimfront_artifact_study_id_slimfront_study", type_="foreignkey")
        table.alter_column("trial_id", existing_type=sa.Integer(), nullable=False)
        table.drop_column("removed_at")
        table.drop_column("key")
        table.drop_column("study_id")
    op.drop_column("slimfront_study", "artifacts_prefix")
    op.drop_column("slimfront_study", "artifacts_root")
