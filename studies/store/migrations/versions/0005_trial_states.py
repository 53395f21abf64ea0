"""Pruned and interrupted trials have states of their own, and violations name their metric.

Before, both were rows whose state was "infeasible" or "failed" and whose reason began with a certain sentence. Those reasons
are read here, once. Optuna's copy of a trial's state, a user attribute, is added where its tables are: samplers learn
nothing from interrupted trials and duplicates, which they recognized by the reason too.
"""

from __future__ import annotations

import json
import re
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BEFORE = ("running", "complete", "infeasible", "failed")
AFTER = ("running", "complete", "infeasible", "pruned", "failed", "interrupted")

STOPPED = re.compile(r"stopped at rung (\d+)")
INTERRUPTED = "interrupted before it ended"
DIED = f"{INTERRUPTED}: the search's process died"
DUPLICATE = "same policy as trial"

TRIAL = sa.table(
    "slimfront_trial",
    sa.column("id", sa.Integer),
    sa.column("state", sa.String),
    sa.column("reason", sa.Text),
    sa.column("rung", sa.Integer),
    sa.column("driver_died", sa.Boolean),
    sa.column("violations", sa.JSON(none_as_null=True)),
)
OPTUNA = sa.table(
    "trial_user_attributes",
    sa.column("trial_id", sa.Integer),
    sa.column("key", sa.String),
    sa.column("value_json", sa.Text),
)


def upgrade() -> None:
    connection = op.get_bind()
    with op.batch_alter_table("slimfront_trial") as table:
        table.add_column(sa.Column("rung", sa.Integer, nullable=True))
        table.add_column(sa.Column("driver_died", sa.Boolean, nullable=False, server_default=sa.false()))
        _allow(table, AFTER)
    for row in connection.execute(sa.select(TRIAL.c.id, TRIAL.c.state, TRIAL.c.reason, TRIAL.c.violations)).all():
        changes = {**_state(row.state, row.reason or ""), **_violations(row.violations)}
        if changes:
            connection.execute(sa.update(TRIAL).where(TRIAL.c.id == row.id).values(changes))
    if sa.inspect(connection).has_table("trial_user_attributes"):
        _copy_to_optuna(connection)


def downgrade() -> None:
    connection = op.get_bind()
    for state, before in (("pruned", "infeasible"), ("interrupted", "failed")):
        connection.execute(sa.update(TRIAL).where(TRIAL.c.state == state).values(state=before))
    for row in connection.execute(sa.select(TRIAL.c.id, TRIAL.c.violations)).all():
        if row.violations:
            flat = {each["constraint"]: each["excess"] for each in row.violations}
            connection.execute(sa.update(TRIAL).where(TRIAL.c.id == row.id).values(violations=flat))
    with op.batch_alter_table("slimfront_trial") as table:
        _allow(table, BEFORE)
        table.drop_column("driver_died")
        table.drop_column("rung")


def _allow(table: BatchOperations, states: tuple[str, ...]) -> None:
    """Have the table take these states and no others."""
    if op.get_bind().dialect.name != "sqlite":  # whose tables are copied without their checks
        table.drop_constraint("ck_slimfront_trial_state", type_="check")
    table.create_check_constraint("ck_slimfront_trial_state", f"state IN {states}")


def _state(state: str, reason: str) -> dict[str, Any]:
    """What a row's reason says of its state."""
    if stopped := STOPPED.match(reason):
        return {"state": "pruned", "rung": int(stopped[1])}
    if state == "failed" and reason in (INTERRUPTED, DIED):
        return {"state": "interrupted", "driver_died": reason == DIED}
    return {}


def _violations(violations: dict[str, float] | None) -> dict[str, Any]:
    """Violations as a list that names the metric, which a constraint's text begins with."""
    if violations is None:
        return {}
    listed = [{"metric": text.split()[0], "constraint": text, "excess": excess} for text, excess in violations.items()]
    return {"violations": listed}


def _copy_to_optuna(connection: sa.Connection) -> None:
    for beginning, state in ((INTERRUPTED, "interrupted"), (DUPLICATE, "duplicate")):
        copied = sa.select(OPTUNA.c.trial_id, sa.literal("state"), sa.literal(json.dumps(state))).where(
            OPTUNA.c.key == "reason", OPTUNA.c.value_json.like(f'"{beginning}%')
        )
        connection.execute(sa.insert(OPTUNA).from_select(["trial_id", "key", "value_json"], copied))
