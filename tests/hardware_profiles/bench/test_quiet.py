"""Waiting for a quiet machine, on a clock of its own and on files as Linux writes them."""

from __future__ import annotations

import itertools
import os

import pytest
from slimfront.hardware_profiles.bench import quiet
from slimfront.hardware_profiles.bench.quiet import LOOK_SECONDS, QuietWait, busy_share


class Machine:
    """A machine on which something else runs until `busy_until`; a look takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, busy_until: float) -> None:
        self.now, self.busy_until = 0.0, busy_until
        monkeypatch.setattr(quiet.time, "monotonic", lambda: self.now)

    def busy(self, seconds: float) -> float:
        self.now += seconds
        return 0.8 if self.now <= self.busy_until else 0.02


def test_a_quiet_machine_costs_one_look(monkeypatch):
    machine = Machine(monkeypatch, busy_until=0)
    wait = QuietWait(machine.busy, limit=10)
    wait()
    assert (machine.now, wait.taken()) == (LOOK_SECONDS, 0)


def test_a_busy_machine_is_waited_for_until_it_is_quiet(monkeypatch):
    machine = Machine(monkeypatch, busy_until=4)
    wait = QuietWait(machine.busy, limit=10)
    wait()
    assert machine.now == pytest.approx(4, abs=2 * LOOK_SECONDS)
    wait()
    assert wait.taken() == pytest.approx(4, abs=2 * LOOK_SECONDS)
    assert wait.taken() == 0


def test_a_machine_that_is_never_quiet_costs_twice_the_limit_in_all(monkeypatch):
    machine = Machine(monkeypatch, busy_until=float("inf"))
    wait = QuietWait(machine.busy, limit=10)
    wait()
    assert machine.now == pytest.approx(10, abs=LOOK_SECONDS)
    for _ in range(100):
        wait()
    assert machine.now <= 2 * 10 + 10 * LOOK_SECONDS
    assert wait.taken() == pytest.approx(machine.now)


def test_a_quiet_moment_restores_the_patience(monkeypatch):
    machine = Machine(monkeypatch, busy_until=15)
    wait = QuietWait(machine.busy, limit=10)
    for _ in range(3):  # 10 s in vain, 5 s in vain, then quiet
        wait()
    machine.busy_until, began = float("inf"), machine.now
    wait()
    assert machine.now - began == pytest.approx(10, abs=2 * LOOK_SECONDS)


def test_no_limit_no_look(monkeypatch):
    machine = Machine(monkeypatch, busy_until=float("inf"))
    wait = QuietWait(machine.busy, limit=0)
    wait()
    assert machine.now == 0
    assert not wait.is_patient
    assert QuietWait(machine.busy, limit=1).is_patient


def stat(*cores: tuple[int, ...]) -> str:
    """/proc/stat of cores 3, 4, ... with their ticks: user nice system idle iowait irq softirq steal guest guest_nice."""
    lines = ["cpu  1 1 1 1 1 1 1 1 1 1"]
    lines += [f"cpu{number} {' '.join(map(str, ticks))}" for number, ticks in enumerate(cores, start=3)]
    return "\n".join([*lines, "intr 12345 0 9", "ctxt 42"])


def share(before: str, after: str, own_seconds: float, cores: list[int], tmp_path, monkeypatch) -> float:
    (file := tmp_path / "stat").write_text(before)
    own = itertools.count(0, own_seconds)
    monkeypatch.setattr(quiet, "STAT", file)
    monkeypatch.setattr(quiet.time, "process_time", lambda: next(own))
    monkeypatch.setattr(quiet.time, "sleep", lambda _: file.write_text(after) and None)
    return busy_share(cores, 0.1)


def test_the_busy_share_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    before = stat((0, 0, 0, 0, 0, 0, 0, 0, 0, 0), (100, 10, 20, 1000, 5, 1, 2, 3, 50, 0))
    after = stat((9, 9, 9, 0, 0, 0, 0, 0, 0, 0), (102, 11, 21, 1004, 6, 1, 2, 4, 51, 0))
    found = lambda own, cores: share(before, after, own, cores, tmp_path, monkeypatch)  # noqa: E731
    assert found(0, [4]) == pytest.approx(5 / 10)  # user 2, nice 1, system 1, stolen 1; idle 4, waiting for a disk 1
    assert found(0.03, [4]) == pytest.approx(2 / 10)  # three ticks were our own
    assert found(0, [3, 4]) == pytest.approx((27 + 5) / (27 + 10))
    assert found(5, [4]) == 0
    assert found(0, [7]) == 0  # no such core: nothing is known, and nothing waited for
