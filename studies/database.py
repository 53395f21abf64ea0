"""Opening the database: SQLite or PostgreSQL, migrated, its errors told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from ..errors import StoreError
from ..interrupts import uninterrupted
from .migrations import upgrade
from .tables import REVISION, VERSION_TABLE

DEFAULT_URL = "sqlite:///slimfront.db"
BUSY_TIMEOUT_S = 10

_MIGRATION_LOCK = 0x511F407  # any fixed number: whoever migrates a PostgreSQL database holds the advisory lock of it


def database_url(url: str) -> URL:
    """The URL with the driver slimfront installs: `postgresql://` becomes `postgresql+psycopg://`; of a path, its SQLite file's.

    Raises:
        StoreError: neither a path nor a database URL, neither SQLite nor PostgreSQL, or in memory.
    """
    try:
        parsed = URL.create("sqlite", database=url) if _is_path(url) else make_url(url)
    except ArgumentError:
        raise StoreError(
            f"storage {url!r} is no database URL; write a file's name, {DEFAULT_URL} or postgresql://USER@HOST/NAME"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise StoreError(f"{_shown(parsed)}: storage is SQLite or PostgreSQL, not {kind}")
    if kind == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError(
            f"{_shown(parsed)}: a database in memory ends with the command; name a file, as in {DEFAULT_URL}"
        )
    return parsed


def absolute_url(url: str) -> str:
    """The URL as text, the file of a SQLite database from the root on: the current folder may change.

    Raises:
        StoreError: as `database_url`.
    """
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite" and not str(parsed.database).startswith("file:"):
        parsed = parsed.set(database=str(Path(str(parsed.database)).absolute()))
    return parsed.render_as_string(hide_password=False)


class Database:
    """An open, migrated database.

    Args:
        url: as the user wrote it.
        create: make a SQLite file that is not there yet.

    Raises:
        StoreError: not there, not readable, not a database, locked, or written by a newer slimfront.
    """

    def __init__(self, url: str, *, create: bool) -> None:
        self.url = database_url(url)
        self.name = _shown(self.url)
        if not create and self.url.get_backend_name() == "sqlite" and not Path(str(self.url.database)).exists():
            raise StoreError(f"{self.name}: no such database; `slimfront search` makes one")
        engine = self._engine()
        if engine.dialect.name == "sqlite":
            self._reader, self._writer = engine, engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        else:
            self._reader, self._writer = engine.execution_options(isolation_level="REPEATABLE READ"), engine
        try:
            self._migrate()
        except BaseException:  # also Ctrl-C while waiting for a lock: no connection may stay open behind it
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one moment of the database."""
        with self._errors(), Session(self._reader) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes all land together at its end, or none of them; Ctrl-C waits for that."""
        with uninterrupted(), self._errors(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self._reader.dispose()

    def _engine(self) -> Engine:
        sqlite = self.url.get_backend_name() == "sqlite"
        waits = {"timeout": BUSY_TIMEOUT_S} if sqlite and "timeout" not in self.url.query else {}
        try:
            engine = create_engine(self.url, connect_args=waits)
        except ModuleNotFoundError as error:
            raise StoreError(f"{self.name}: no driver {error.name!r}; pip install 'slimfront[postgresql]'") from error
        if sqlite:
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _migrate(self) -> None:
        with self._errors():
            with self._reader.connect() as connection:
                if self._revision(connection) == REVISION:
                    return
            with self._writer.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                if self._revision(connection) != REVISION:
                    upgrade(connection)

    def _revision(self, connection: Connection) -> str | None:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        revision = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
        if revision is not None and revision > REVISION:
            raise StoreError(
                f"{self.name}: written by a newer slimfront (schema {revision}, this one knows {REVISION}); upgrade slimfront"
            )
        return revision

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            problem = str(error.orig).strip().splitlines()[0]
            if "database is locked" in problem:
                problem = "locked by another process; try again when that one has ended"
            raise StoreError(f"{self.name}: {problem}") from error


def _is_path(url: str) -> bool:
    """Whether this names a file, such as `slimfront.db`; what could be a URL that was mistyped does not."""
    return bool(url.strip()) and not set(url) & set(":?@#")


def _shown(url: URL) -> str:
    """The URL without its password."""
    return url.render_as_string(hide_password=True)


def _prepare_sqlite(connection, record) -> None:
    # The sqlite3 module would begin transactions late and by its own rules; with None, `_begin_sqlite` does it.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock before it reads: one that upgraded later would fail at once instead of waiting.
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
