"""The right to be the only driver of a study, as a row in the database that expires unless it is renewed.

A file or an advisory lock would not do: a file has several names, and PostgreSQL's locks end with a connection that would
have to stay open, idle, for as long as a search lasts.
"""

from __future__ import annotations

import os
import platform
import uuid
from functools import cache
from pathlib import Path

import psutil
from sqlalchemy import Connection, text

from ...core.errors import StoreError
from .database import Database

EXPIRES_S = 60.0
"""Seconds after its last heartbeat that a lease is anyone's to take."""

HEARTBEAT_S = 15.0
"""Seconds between two heartbeats."""

_CLOCK = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch FROM clock_timestamp())::double precision",
}
_TAKE = """
    INSERT INTO slimfront_lease (study, owner, heartbeat, expires) VALUES (:study, :owner, {now}, {now} + :seconds)
    ON CONFLICT (study) DO UPDATE
    SET owner = excluded.owner, heartbeat = excluded.heartbeat, expires = excluded.expires
    WHERE slimfront_lease.expires < {now} OR slimfront_lease.owner = :dead
"""
_RENEW = (
    "UPDATE slimfront_lease SET heartbeat = {now}, expires = {now} + :seconds WHERE study = :study AND owner = :owner"
)
_RELEASE = "DELETE FROM slimfront_lease WHERE study = :study AND owner = :owner"
_OWNER = "SELECT owner FROM slimfront_lease WHERE study = :study"


class Lease:
    """One process's lease of one study, taken by `take`; every write to its database is refused once another has it.

    Ownership: of one driver. `renew` may be called from a thread of its own.
    """

    def __init__(self, database: Database, study: str) -> None:
        self._database, self._study = database, study
        self._owner = f"{_here()} {os.getpid()} {_born(os.getpid())} {uuid.uuid4().hex}"
        self._clock = _CLOCK[database.url.get_backend_name()]

    def take(self) -> None:
        """Become the study's driver; at once if the last one ended properly, or ran on this machine and is dead.

        Raises:
            StoreError: another process is.
        """
        with self._database.unguarded() as session:
            connection = session.connection()
            held = self._holder(connection)
            dead = held if held is not None and _has_ended(held) else ""
            if not self._execute(connection, _TAKE, dead=dead):
                raise StoreError(
                    f"study {self._study!r} is being searched by another process{_whereabouts(self._holder(connection))}; "
                    "wait for it or name another study"
                )
        self._database.guards.append(self._guard)

    def renew(self) -> None:
        """Extend the lease: this driver is alive.

        Raises:
            StoreError: another process has taken the study over, or the database cannot be written now.
        """
        with self._database.unguarded() as session:
            if not self._execute(session.connection(), _RENEW):
                raise self.lost()

    def release(self) -> None:
        """Leave the study to the next one."""
        self._database.guards.remove(self._guard)
        with self._database.unguarded() as session:
            self._execute(session.connection(), _RELEASE)

    def is_held(self) -> bool:
        """Whether no other process has taken the study over."""
        with self._database.reading() as session:
            return self._holder(session.connection()) == self._owner

    def lost(self) -> StoreError:
        """What to say once another process has the study."""
        return StoreError(
            f"study {self._study!r} was taken over by another process while this one gave no sign of life for "
            f"{EXPIRES_S:g} s; this one stops, the other continues"
        )

    def _guard(self, connection: Connection) -> None:
        # PostgreSQL holds the row until the write has ended: nobody takes the study over in its middle.
        lock = " FOR SHARE" if connection.dialect.name == "postgresql" else ""
        if connection.scalar(text(_OWNER + lock), {"study": self._study}) != self._owner:
            raise self.lost()

    def _holder(self, connection: Connection) -> str | None:
        return connection.scalar(text(_OWNER), {"study": self._study})

    def _execute(self, connection: Connection, statement: str, **more: str) -> bool:
        """Whether the statement changed the study's row."""
        values = {"study": self._study, "owner": self._owner, "seconds": EXPIRES_S, **more}
        statement = statement.format(now=self._clock)
        return (
            connection.execute(text(statement), {k: v for k, v in values.items() if f":{k}" in statement}).rowcount > 0
        )


@cache
def _here() -> str:
    """Where process numbers mean what they mean here: this machine, since it was started, and this container."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.is_file() and namespace.exists():
        return f"{platform.node()[:100]}/{boot.read_text().strip()}/{os.readlink(namespace)}"
    return f"{platform.node()[:100]}/{uuid.getnode():x}"


def _born(pid: int) -> str:
    """When a process began, in ticks since the machine did, which no clock that is set can move; "" where that is not known."""
    status = Path(f"/proc/{pid}/stat")
    # The second field is the command in brackets, which may hold anything; the start is the 22nd.
    return status.read_text(errors="replace").rpartition(")")[2].split()[19] if status.is_file() else ""


def _has_ended(owner: str) -> bool:
    """Whether an owner's process ran on this machine and has ended, even if another process has its id by now."""
    here, pid, born, _ = owner.rsplit(" ", 3)
    if here != _here():
        return False
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE or _born(int(pid)) != born
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def _whereabouts(owner: str | None) -> str:
    """ " (process N on HOST)"; nothing where it has just ended."""
    if owner is None:
        return ""
    place, pid, *_ = owner.rsplit(" ", 3)
    return f" (process {pid} on {place.split('/')[0]})"
