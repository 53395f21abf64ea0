"""Opening the database: SQLite or PostgreSQL, migrated, its errors said in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from ...core.defaults import DEFAULT_STORAGE
from ...core.errors import StoreAwayError, StoreError
from ...core.interrupts import uninterrupted
from ...core.texts import one_line, redacted, without
from ...core.validation import shortened
from .migrations import upgrade
from .tables import REVISION, VERSION_TABLE

logging.getLogger("psycopg").addHandler(logging.NullHandler())  # it warns of a lost connection, which is raised too

MOST_OF_A_PATH = 200
"""Characters of a path that are shown where it cannot be looked at."""

BUSY_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 10
"""How long a PostgreSQL server may take to answer; without it a dead address takes two minutes."""

_SQLITE_PROBLEMS = {
    "database is locked": "locked by another process; try again when that one has ended",
    "database or disk is full": "the database or its disk is full; nothing more is stored until there is space",
}

_PASSING_STATES = ("08", "57P01", "57P02", "57P03")
"""PostgreSQL's states of errors: connections that broke, and servers that end or start (its manual, appendix A)."""

_MIGRATION_LOCK = (
    0x511F407  # any fixed number: the process that migrates a PostgreSQL database holds the advisory lock of it
)


def database_url(url: str) -> URL:
    """The URL that SQLAlchemy opens: `postgresql://` becomes `postgresql+psycopg://`, and a file's path becomes a SQLite URL.

    Raises:
        StoreError: neither a path nor a database URL, neither SQLite nor PostgreSQL, in memory, or at a path that cannot be looked at.
    """
    parsed, shown = _parsed(url), redacted(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise StoreError(f"{shown}: storage is SQLite or PostgreSQL, not {kind}")
    if kind == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError(f"{shown}: a database in memory ends with the command; name a file, as in {DEFAULT_STORAGE}")
    if "@" in f"{parsed.host or ''}{parsed.database or ''}" and kind == "postgresql":
        raise StoreError(
            f"{shown}: a password's own characters are escaped: %40 for @, %2F for /, %3A for :, %3F for ?"
        )
    _require_path(parsed)
    return parsed


def _require_path(url: URL) -> None:
    if (file := sqlite_file(url)) is None:
        return
    try:
        file.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be entered
        problem = getattr(error, "strerror", None) or error
        raise StoreError(f"storage {shortened(file, MOST_OF_A_PATH)}: {problem}") from error


def _parsed(url: str) -> URL:
    shown = redacted(url)
    try:
        return URL.create("sqlite", database=url) if _is_path(url) else make_url(url)
    except ArgumentError:
        raise StoreError(
            f"storage {shown!r} is not a database URL; write a file's name, {DEFAULT_STORAGE} or postgresql://USER@HOST/NAME"
        ) from None
    except ValueError:  # the one part that is converted
        raise StoreError(f"{shown}: the port is not a number; write postgresql://USER@HOST:5432/NAME") from None


def absolute_url(url: str) -> str:
    """The URL as text, the file of a SQLite database from the root on: the current folder may change.

    Raises:
        StoreError: as `database_url`.
    """
    parsed = database_url(url)
    if (file := sqlite_file(parsed)) is not None:
        parsed = parsed.set(database=str(file))
    return parsed.render_as_string(hide_password=False)


def is_there(url: str) -> bool:
    """Whether there is a database to open; a server's is taken to be there.

    Raises:
        StoreError: as `database_url`.
    """
    parsed = database_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(str(parsed.database)).exists()


def connect_waits(url: URL) -> dict[str, int]:
    """How long a driver waits for the database, as an argument of its own kind; nothing where the URL says that."""
    sqlite = url.get_backend_name() == "sqlite"
    key, seconds = ("timeout", BUSY_TIMEOUT_S) if sqlite else ("connect_timeout", CONNECT_TIMEOUT_S)
    return {} if key in url.query else {key: seconds}


class Database:
    """An open, migrated database.

    Args:
        url: as the user wrote it.
        create: create the SQLite file if it does not exist.

    Raises:
        StoreError: not there, not readable, not a database, locked, or written by a newer slimfront.
    """

    def __init__(self, url: str, *, create: bool) -> None:
        self.url = database_url(url)
        self.name = redacted(url)
        self.guards: list[Callable[[Connection], None]] = []
        """Called within every write, before anything is written; they raise where this process may no longer write."""
        self._secrets = _secrets(self.url)
        if not create and not is_there(url):
            raise StoreError(f"{self.name}: no such database; `slimfront search` makes one")
        engine = self._engine()
        if engine.dialect.name == "sqlite":
            self._reader, self._writer = engine, engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        else:
            self._reader, self._writer = engine.execution_options(isolation_level="REPEATABLE READ"), engine
        try:
            self._migrate()
        except BaseException:  # also Ctrl-C while waiting for a lock: no connection may stay open
            self.close()
            raise
        if (file := sqlite_file(self.url)) is not None:
            self.guards.append(partial(self._require_same, file, _identity(file)))

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one moment of the database."""
        with self._errors(), Session(self._reader) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes all land together at its end, or none of them; Ctrl-C waits for that."""
        with self.unguarded() as session:
            self.guard(session.connection())
            yield session

    @contextmanager
    def unguarded(self) -> Iterator[Session]:
        """`writing` for the lease itself."""
        with uninterrupted(), self._errors(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def guard(self, connection: Connection) -> None:
        """See, within the transaction of a connection to this database, that this process may still write."""
        for guard in self.guards:
            guard(connection)

    def _require_same(self, file: Path, opened: tuple[int, int] | None, _: Connection) -> None:
        """See that the file is where it was opened: one that was moved or deleted takes all that is written, and nobody finds it."""
        if _identity(file) != opened:
            raise StoreError(
                f"{self.name}: moved, deleted or replaced while it was open; once it is back, the same command continues"
            )

    def watch(self, engine: Engine) -> None:
        """Have another engine over this database, such as Optuna's, guard its writes and word its errors as this one does."""
        event.listen(engine, "handle_error", self._reword)
        event.listen(engine, "before_cursor_execute", self._guard_statement)

    def _reword(self, context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        expected = context.is_pre_ping or isinstance(
            error, IntegrityError
        )  # the pool reconnects; Optuna looks for these
        if isinstance(error, DBAPIError) and not expected:
            raise self._worded(error) from error

    def _guard_statement(self, connection: Connection, cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
            self.guard(connection)

    def close(self) -> None:
        """Close all connections."""
        self._reader.dispose()

    def _engine(self) -> Engine:
        sqlite = self.url.get_backend_name() == "sqlite"
        waits = connect_waits(self.url)
        with self._errors_of_the_url():
            # A server may have ended a connection that was idle: it is asked before it is used.
            engine = create_engine(self.url, connect_args=waits, pool_pre_ping=not sqlite)
        if sqlite:
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _migrate(self) -> None:
        with self._errors():
            with self._errors_of_the_url():
                connection = self._reader.connect()
            with connection:
                if self._revision(connection) == REVISION:
                    return
            with self._writer.connect() as connection, _foreign_keys_off(connection), connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                if self._revision(connection) != REVISION:
                    upgrade(connection)

    @contextmanager
    def _errors_of_the_url(self) -> Iterator[None]:
        """What is wrong in parts of the URL that only a driver reads."""
        try:
            yield
        except ModuleNotFoundError as error:
            raise StoreError(f"{self.name}: no driver {error.name!r}; pip install 'slimfront[postgresql]'") from error
        except (ArgumentError, ValueError, TypeError, OSError) as error:
            problem = one_line(without(str(error), self._secrets))
            raise StoreError(f"{self.name}: no database is reached by this URL: {problem}") from error

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
            raise self._worded(error) from error

    def _worded(self, error: DBAPIError) -> StoreError:
        lines = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
        known = (said for problem, said in _SQLITE_PROBLEMS.items() if problem in lines[0])
        kind = StoreAwayError if _may_pass(error) else StoreError
        return kind(f"{self.name}: {next(known, one_line(without(lines[0], self._secrets)))}")


def _may_pass(error: DBAPIError) -> bool:
    """Whether the database may answer in a moment: what PostgreSQL raises of a connection has no state, or one of these."""
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError):
        return False
    state = getattr(error.orig, "sqlstate", "")
    return "is locked" in str(error.orig) if state == "" else state is None or state.startswith(_PASSING_STATES)


def sqlite_file(url: URL) -> Path | None:
    """The absolute path of a SQLite database; None of a server's, and of one that SQLite's own kind of URL names."""
    is_file = url.get_backend_name() == "sqlite" and not str(url.database).startswith("file:")
    return Path(str(url.database)).absolute() if is_file else None


def _identity(file: Path) -> tuple[int, int] | None:
    """The device and number of a file; None where there is none, or none that can be reached."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_path(url: str) -> bool:
    """Whether this names a file, such as `slimfront.db`; what could be a URL that was mistyped does not."""
    return bool(url.strip()) and not set(url) & set(":?@#")


def _secrets(url: URL) -> list[str]:
    """What no message may say of a URL: its passwords, as they are and as they are written."""
    found = [value for key, value in url.query.items() if redacted(f"{key}=") != f"{key}="]
    texts = [text for value in found for text in ([value] if isinstance(value, str) else value)]
    passwords = [str(url.password)] if url.password else []
    return [form for text in (*texts, *passwords) for form in (text, quote(text, safe=""))]


def _prepare_sqlite(connection, record) -> None:
    # The sqlite3 module would begin transactions late and by its own rules; with None, `_begin_sqlite` does it.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Let a SQLite table be made anew while rows of others refer to it, which takes effect before a transaction alone."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver = connection.connection.cursor()
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")
        driver.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock before it reads: one that upgraded later would fail at once instead of waiting.
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
