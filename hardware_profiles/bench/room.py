"""The memory that loads of artifacts take and may take, where their runtime computes."""

from __future__ import annotations

from typing import Protocol

import psutil

from ...core.machine.memory import free_memory
from ..runtimes.registry import RUNTIMES


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
        return free_memory()


class _GpuRoom:
    def taken(self) -> int:
        free, whole = _gpu_memory()
        return whole - free

    def free(self) -> float:
        return _gpu_memory()[0]


def _gpu_memory() -> tuple[int, int]:
    import torch  # only here: benches of other runtimes do without

    return torch.cuda.mem_get_info()
