"""Who times: the holder of the machine's one bench, which has a GPU that it times on to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from filelock import FileLock

from ...core.machine.turns import gpu_shared, gpu_to_itself, lock_file
from ..runtimes.registry import RUNTIMES

LOCK_FILE = lock_file()
"""The kernel releases an flock when its holder dies."""

POLL_SECONDS = 0.01
"""The seconds between two attempts to take the bench; a process that polls less often is overtaken by those that poll more."""


def bench_lock() -> FileLock:
    """The lock of this machine's bench, not held yet. Not reentrant: every call makes another one."""
    return FileLock(LOCK_FILE, mode=0o666)


@contextmanager
def alone(runtime: str) -> Iterator[None]:
    """Hold the machine's bench, and the GPU where `runtime` computes on one."""
    with bench_lock().acquire(poll_interval=POLL_SECONDS), alone_on_gpu(runtime):
        yield


def alone_on_gpu(runtime: str) -> AbstractContextManager[None]:
    """Keep all others off the GPU of a runtime that times kernels while it compiles; nothing happens for one that computes elsewhere."""
    return gpu_to_itself(_device(runtime))


def sharing_gpu(runtime: str) -> AbstractContextManager[None]:
    """Keep off the GPU of a runtime while somebody times there: it has no cores to keep untimed work away from."""
    return gpu_shared(_device(runtime))


def _device(runtime: str) -> str:
    return "cuda" if RUNTIMES[runtime].gpu else "cpu"
