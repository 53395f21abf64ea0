"""The memory that loads of artifacts take and may take, where their runtime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import psutil

from ..runtimes.registry import RUNTIMES

CGROUP = Path("/sys/fs/cgroup")


class Room(Protocol):
    """Memory in bytes."""

    def taken(self) -> int:
        """What loads take now, and other things that do not change between two loads."""
        ...

    def free(self) -> float:
        """What more of them may take."""
        ...


def room_of(runtime: str) -> Room:
    """That of this process, or of the GPU where the runtime computes on one."""
    return _GpuRoom() if RUNTIMES[runtime].gpu else _OwnRoom()


class _OwnRoom:
    def taken(self) -> int:
        return psutil.Process().memory_info().rss

    def free(self) -> float:
        return min(psutil.virtual_memory().available, _left_in_container())


class _GpuRoom:
    def taken(self) -> int:
        free, whole = _gpu_memory()
        return whole - free

    def free(self) -> float:
        return _gpu_memory()[0]


def _gpu_memory() -> tuple[int, int]:
    import torch  # only here: benches of other runtimes do without

    return torch.cuda.mem_get_info()


def _left_in_container() -> float:
    """Bytes up to the limit of this process's container (Linux, Documentation/admin-guide/cgroup-v2.rst); infinite without one."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
    except (FileNotFoundError, KeyError):
        return float("inf")  # the root has no limit, and version 1 of cgroups no such files
    return float("inf") if limit == "max" else int(limit) - int(used) + int(cached)
