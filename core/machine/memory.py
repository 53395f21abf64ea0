"""How much more memory a process may take, by what the machine has free and what the limits of its control groups leave, and how it gives
memory back.

A group's limit holds for all groups within it, so that the least of all levels counts (Linux, Documentation/admin-guide/cgroup-v2.rst
and cgroup-v1/memory.rst).
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PROCESS = Path("/proc/self")
"""Where Linux says which groups this process is in, and where they are mounted."""

WORTH_BYTES = 2**27
"""Free memory that is kept for later, as training uses the same sizes again and again, is given back from here on."""


def free_memory() -> float:
    """Bytes that this process may still take."""
    return min(psutil.virtual_memory().available, left_in_groups(PROCESS))


@dataclass(frozen=True)
class _Version:
    """The names of a version of control groups: of its files in a group's folder, and of a line in one."""

    limit: str
    used: str
    cached: str


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("memory.max", "memory.current", "inactive_file")


def left_in_groups(process: Path) -> float:
    """Bytes up to the nearest limit of the control groups of a process; infinite where none has a limit.

    Args:
        process: folder of the process, as /proc/self.
    """
    left = [_left_in(group, version) for group, version in _groups(process)]
    return min(left, default=float("inf"))


def _groups(process: Path) -> Iterator[tuple[Path, _Version]]:
    """The folders of the groups that limit the memory of a process: its own, and all that hold that one."""
    try:
        own = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:  # not Linux, or hidden
        return
    for line in own:
        number, controllers, path = line.split(":", 2)
        version = _V2 if number == "0" else _V1
        if version is _V2 or "memory" in controllers.split(","):
            for root, place in _mounted(mounts, version):
                folder = _within(place, root, path)
                yield from ((each, version) for each in (folder, *folder.parents) if each.is_relative_to(place))


def _mounted(mounts: list[str], version: _Version) -> Iterator[tuple[str, Path]]:
    """The group at the root of each mount of a hierarchy that may limit memory, and where it is mounted (proc(5), mountinfo)."""
    for line in mounts:
        mount, _, kind = line.partition(" - ")
        filesystem, _, rest = kind.partition(" ")
        options = rest.split(" ")[-1].split(",")  # after the source, which may be empty
        if filesystem == ("cgroup2" if version is _V2 else "cgroup") and (version is _V2 or "memory" in options):
            root, place = (_unescaped(field) for field in mount.split(" ")[3:5])
            yield root, Path(place)


def _within(place: Path, root: str, path: str) -> Path:
    """The folder of a group: where what is mounted at `place` does not show it, that is the nearest to it there is."""
    inside = os.path.relpath(path, root)
    folder = place / inside
    return folder if not inside.startswith("..") and folder.is_dir() else place


def _left_in(group: Path, version: _Version) -> float:
    """Bytes up to a group's own limit, pages of files that can be dropped at any time counted as free; infinite without one."""
    try:
        limit, used = ((group / name).read_text().strip() for name in (version.limit, version.used))
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:  # the root has no limit, and a group without memory's controller none of these files
        return float("inf")
    cached = next((int(line.split()[1]) for line in lines if line.split()[0] == version.cached), 0)
    return float("inf") if limit == "max" else int(limit) - int(used) + cached


def _unescaped(field: str) -> str:
    """A field of mountinfo, where spaces are written as \\040."""
    return field.encode().decode("unicode_escape")


class _Usage(ctypes.Structure):
    """`struct mallinfo2` of glibc; `free` is what is allocated from the system and unused."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("a", "b", "c", "d", "e", "f", "g", "used", "free", "top")]


def give_back() -> None:
    """Give the system what was freed, where that is much: of ResNet-152's export, whose weights are 0.24 GB, glibc keeps 0.57 GB.

    Does nothing where the C library is not glibc.
    """
    library = ctypes.CDLL(None)
    trim, usage = getattr(library, "malloc_trim", None), getattr(library, "mallinfo2", None)
    if trim is None or usage is None:
        return
    usage.restype = _Usage
    if usage().free >= WORTH_BYTES:
        trim(0)


def tidy() -> None:
    """Collect garbage, and give back what that frees: captured graphs hold a model's weights in circles of references."""
    gc.collect()
    give_back()
