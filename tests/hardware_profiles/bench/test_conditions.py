"""Clock, temperature and throttling as Linux and psutil report them, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from slimfront.hardware_profiles.bench import conditions
from slimfront.hardware_profiles.bench.conditions import Conditions, CoreState

CPUINFO = """processor\t: 0
model name\t: A processor @ 3.00GHz
cpu MHz\t\t: 1200.000

processor\t: 1
cpu MHz\t\t: 2600.500
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that reports nothing."""
    monkeypatch.setattr(conditions, "CPUS", tmp_path)
    monkeypatch.setattr(conditions, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    return tmp_path


def report(root: Path, core: int, file: str, value: int) -> None:
    path = root / f"cpu{core}" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def test_a_machine_that_reports_nothing(bare):
    state = CoreState.of([0, 1])
    assert state == CoreState(None, None, None)
    assert (Conditions(state, state).reading, Conditions(state, state).remarks) == ("", [])


def test_the_frequency_driver_comes_before_cpuinfo(bare):
    (bare / "cpuinfo").write_text(CPUINFO)
    assert CoreState.of([1]).mhz == 2600.5
    assert CoreState.of([0, 1]).mhz == pytest.approx(1900.25)
    report(bare, 0, "cpufreq/scaling_cur_freq", 800_000)
    report(bare, 1, "cpufreq/scaling_cur_freq", 3_200_000)
    assert CoreState.of([1]).mhz == 3200
    assert CoreState.of([0, 1]).mhz == 2000


def test_heat_and_throttling(bare, monkeypatch):
    chips = {
        "coretemp": [SimpleNamespace(current=61.0), SimpleNamespace(current=64.0)],
        "nvme": [SimpleNamespace(current=80.0)],  # a disk
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: chips, raising=False)
    report(bare, 0, "thermal_throttle/core_throttle_count", 3)
    report(bare, 1, "thermal_throttle/core_throttle_count", 4)
    assert CoreState.of([0, 1]) == CoreState(None, 64.0, 7)


@pytest.mark.parametrize(
    ("before", "after", "waited_s", "remarks"),
    [
        (CoreState(3000, 50, 0), CoreState(2900, 70, 0), 0.5, []),
        (CoreState(3000, 50, 0), CoreState(2400, 70, 0), 0, ["the clock moved from 3000 to 2400 MHz"]),
        (CoreState(2400), CoreState(3000), 0, ["the clock moved from 2400 to 3000 MHz"]),
        (CoreState(None, None, 3), CoreState(None, None, 5), 0, ["the processor was slowed for its heat"]),
        (CoreState(), CoreState(), 3.2, ["waited 3 s for a quiet machine"]),
        (CoreState(), CoreState(3000), 0, []),
    ],
)
def test_what_is_worth_a_remark(before, after, waited_s, remarks):
    assert Conditions(before, after, waited_s).remarks == remarks


def test_this_machine_answers():
    state = CoreState.of([0])
    assert state.mhz is None or 100 < state.mhz < 10_000
    assert state.celsius is None or -50 < state.celsius < 150
