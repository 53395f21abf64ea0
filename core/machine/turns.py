"""Turns on a GPU: one process times on it, or any number compute on it, never both. A timing that waits is next.

A GPU is known by its UUID, the same in every process, whatever it sees of the machine's GPUs and numbers them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from functools import cache
from pathlib import Path
from threading import local

_own = local()


def lock_file() -> Path:
    """The lock file of the machine's bench, after which those of its GPUs are named: the same for all users, whatever their TMPDIR."""
    return Path(os.environ.get("SLIMFRONT_BENCH_LOCK", "/tmp/slimfront-bench.lock"))


@contextmanager
def gpu_to_itself(device: str) -> Iterator[None]:
    """Keep all others off a GPU, once those that compute there have made room.

    Args:
        device: as torch names it, such as "cuda:1"; nothing happens for any but NVIDIA's GPUs.
    """
    if not device.startswith("cuda") or _has_turn():
        yield
        return
    waiting, gpu = _files(device)
    with _flocked(waiting, LOCK_EX), _flocked(gpu, LOCK_EX), _turn():
        yield


@contextmanager
def gpu_shared(device: str) -> Iterator[None]:
    """Compute on a GPU, as `gpu_to_itself` names it, while nobody has it to itself.

    A step of training is one turn: between two of them a timing may come in. Within a turn another one is part of it.
    """
    if not device.startswith("cuda") or _has_turn():
        yield
        return
    waiting, gpu = _files(device)
    with ExitStack() as held:
        with _flocked(waiting, LOCK_SH):  # who has the GPU to itself keeps this one until it is through
            held.enter_context(_flocked(gpu, LOCK_SH))
        try:
            with _turn():
                yield
        finally:
            if _is_wanted(waiting):
                _finish(device)


def _is_wanted(waiting: Path) -> bool:
    """Whether somebody waits to have the GPU to itself."""
    try:
        with _flocked(waiting, LOCK_SH | LOCK_NB):
            return False
    except BlockingIOError:
        return True


def _finish(device: str) -> None:
    """Return once the GPU has done all that this process gave it."""
    import torch

    torch.cuda.synchronize(device)


def _files(device: str) -> tuple[Path, Path]:
    """The lock files of a GPU: of those that want it to themselves, and of those that use it."""
    lock, uuid = lock_file(), _uuid(device)
    return lock.with_name(f"{lock.name}.{uuid}.waiting"), lock.with_name(f"{lock.name}.{uuid}")


@cache
def _uuid(device: str) -> str:
    import torch

    return str(torch.cuda.get_device_properties(device).uuid)


@contextmanager
def _flocked(file: Path, how: int) -> Iterator[None]:
    """Hold a lock on a file, which the kernel releases when its holder dies.

    Raises:
        BlockingIOError: it is not to be waited for, and others hold it.
    """
    if not file.exists():
        _make(file)
    descriptor = os.open(file, os.O_RDONLY)  # another user may own it; to read it is enough
    try:
        flock(descriptor, how)
        yield
    finally:
        flock(
            descriptor, LOCK_UN
        )  # closing does not release it where a forked process, as one that loads data, has it open too
        os.close(descriptor)


def _make(file: Path) -> None:
    """Make a lock file that all users can read, whatever this one's umask, from its first moment on."""
    with tempfile.NamedTemporaryFile(dir=file.parent) as made:
        os.fchmod(made.fileno(), 0o666)
        with suppress(FileExistsError):  # another process was first
            os.link(made.name, file)


def _has_turn() -> bool:
    return getattr(_own, "has_turn", False)


@contextmanager
def _turn() -> Iterator[None]:
    _own.has_turn = True
    try:
        yield
    finally:
        _own.has_turn = False
