"""One driver per study: a second one would pop the same enqueued trials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

from filelock import FileLock, Timeout
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from ..errors import StoreError
from ..studies.store import Store


@contextmanager
def sole_driver(store: Store, study: str) -> Iterator[None]:
    """Be the only driver of `study` while the context lasts; the operating system or PostgreSQL ends it with the process.

    Raises:
        StoreError: another process drives the study.
    """
    lock = _postgresql_lock if store.url.startswith("postgresql") else _file_lock
    with lock(store.url, study) as acquired:
        if not acquired:
            raise StoreError(f"study {study!r} is being searched by another process; wait for it or name another study")
        yield


@contextmanager
def _file_lock(url: str, study: str) -> Iterator[bool]:
    path = f"{make_url(url).database}.{study}.lock"
    try:
        with FileLock(path, timeout=0):
            yield True
    except Timeout:
        yield False


@contextmanager
def _postgresql_lock(url: str, study: str) -> Iterator[bool]:
    """An advisory lock, held by a connection of its own."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        yield bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": crc32(study.encode())}))
