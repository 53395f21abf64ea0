"""The machine's one bench: who holds its lock times alone, and what would disturb a timing waits for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from ..runtimes.registry import RUNTIMES

LOCK_FILE = Path(os.environ.get("SLIMFRONT_BENCH_LOCK", "/tmp/slimfront-bench.lock"))
"""The same for everyone on a machine, whatever their TMPDIR; an flock, which the kernel releases when its holder dies."""

POLL_SECONDS = 0.01
"""How often whoever waits for the bench looks; one that looks seldom is overtaken by those who come back for it."""


def bench_lock() -> FileLock:
    """The lock of this machine's bench, not held yet. Not reentrant: every call makes another one."""
    return FileLock(LOCK_FILE, mode=0o666)


@contextmanager
def alone_on_gpu(runtime: str) -> Iterator[None]:
    """Hold the bench while work that is not timed runs on a GPU: it has no cores that work could be kept off.

    For runtimes that compute elsewhere there is nothing to wait for.
    """
    if not RUNTIMES[runtime].gpu:
        yield
        return
    with bench_lock().acquire(poll_interval=POLL_SECONDS):
        yield
