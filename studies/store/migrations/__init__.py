"""The database's history as Alembic migrations, with a version table separate from Optuna's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ..tables import PREFIX, VERSION_TABLE, Base


def include_object(thing: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Whether Alembic may look at a database object: at our tables and what is in them, never at Optuna's."""
    return kind != "table" or (name is not None and name.startswith(PREFIX))


OPTIONS: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "version_table": VERSION_TABLE,
    "include_object": include_object,
}
"""How Alembic is configured, both for migrating and for comparing."""


def upgrade(connection: Connection) -> None:
    """Bring the database to the newest revision, within the connection's own transaction."""
    # Alembic takes a fifth of a second to import, and only a new or old database needs it.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection, **OPTIONS})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    command.upgrade(config, "head")
