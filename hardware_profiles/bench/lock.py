"""The lock of the machine's one bench: its holder is the only one that times, and work that would disturb a timing waits for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from ..runtimes.registry import RUNTIMES

LOCK_FILE = Path(os.environ.get("SLIMFRONT_BENCH_LOCK", "/tmp/slimfront-bench.lock"))
"""The lock file is the same for all users of a machine, whatever their TMPDIR; the kernel releases an flock when its holder dies."""

POLL_SECONDS = 0.01
"""The seconds between two attempts to take the bench; a process that polls less often is overtaken by those that poll more."""


def bench_lock() -> FileLock:
    """The lock of this machine's bench, not held yet. Not reentrant: every call makes another one."""
    return FileLock(LOCK_FILE, mode=0o666)


@contextmanager
def alone_on_gpu(runtime: str) -> Iterator[None]:
    """Hold the bench while untimed work runs on a GPU, which has no cores to keep that work away from.

    For runtimes that compute elsewhere there is nothing to wait for.
    """
    if not RUNTIMES[runtime].gpu:
        yield
        return
    with bench_lock().acquire(poll_interval=POLL_SECONDS):
        yield
