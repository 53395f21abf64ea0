"""The memory that limits of control groups leave, of both versions, in folders that look like those of Linux."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from slimfront.core.machine.memory import left_in_groups

MIB = 2**20
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
V2 = "memory.max", "memory.current", "inactive_file"
NO_LIMIT_V1 = 2**63 - 4096


@pytest.fixture
def process(tmp_path: Path):
    """Writes /proc/self of a process in a group, and the files of groups: path below the mount -> limit, used, cached in MiB."""

    def written(own: str, groups: dict[str, tuple[object, int, int]], version=V2, root: str = "/") -> Path:
        place = tmp_path / "a mount"
        for path, (limit, used, cached) in groups.items():
            group = place / path
            group.mkdir(parents=True, exist_ok=True)
            (group / version[0]).write_text(f"{limit * MIB if isinstance(limit, int) else limit}\n")
            (group / version[1]).write_text(f"{used * MIB}\n")
            (group / "memory.stat").write_text(f"active_file 5\n{version[2]} {cached * MIB}\n")
        kind = "cgroup2 cgroup2 rw" if version is V2 else "cgroup cgroup rw,memory"
        shown = str(place).replace(" ", "\\040")
        mounts = ["22 1 0:21 / /proc rw shared:5 - proc proc rw", f"31 23 0:28 {root} {shown} rw shared:9 - {kind}"]
        (tmp_path / "mountinfo").write_text(
            "\n".join([*mounts, "40 23 0:9 / /cpu rw - cgroup cgroup rw,cpu", "41 23 0:9 / /none rw - tmpfs  rw", ""])
        )
        (tmp_path / "cgroup").write_text(f"{own}\n")
        return tmp_path

    return written


def test_the_nearest_limit_of_nested_groups_counts(process) -> None:
    groups = {"": ("max", 900, 0), "a": (500, 450, 100), "a/b": (400, 300, 10), "a/b/c": ("max", 20, 5)}
    assert left_in_groups(process("0::/a/b/c", groups)) == 110 * MIB
    assert left_in_groups(process("0::/a", groups)) == 150 * MIB


def test_version_1_counts_as_well_where_each_controller_has_a_hierarchy(process) -> None:
    groups = {"": (NO_LIMIT_V1 // MIB, 0, 0), "docker/x": (300, 250, 20)}
    assert left_in_groups(process("4:cpuset,memory:/docker/x\n1:cpu:/y\n0::/", groups, V1)) == 70 * MIB


def test_a_container_that_sees_its_own_group_as_the_root_has_its_limit(process) -> None:
    assert left_in_groups(process("0::/", {"": (64, 60, 1)})) == 5 * MIB
    bound = process("9:memory:/docker/x", {"": (64, 60, 1)}, V1, root="/docker/x")
    assert left_in_groups(bound) == 5 * MIB
    outside = process("9:memory:/elsewhere/y", {"": (64, 60, 1)}, V1, root="/docker/x")
    assert left_in_groups(outside) == 5 * MIB  # the nearest that is shown


def test_without_groups_there_is_no_limit(process, tmp_path: Path) -> None:
    assert left_in_groups(tmp_path / "no such folder") == math.inf
    assert left_in_groups(process("0::/a", {"": ("max", 5, 0), "a": ("max", 5, 0)})) == math.inf
