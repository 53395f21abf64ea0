"""The conditions a timing was made under: the clock and temperature of its cores, before and after, and how long it waited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CPUS = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")

SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal")
"""Names of the drivers that report a processor's temperature: Intel's, AMD's, and those of boards with ARM."""

CLOCK_MOVED = 0.05
"""The share by which the clock may move during a timing before a remark says so."""

WAIT_WORTH_SAYING = 1.0
"""The seconds of waiting from which on a remark says so."""


@dataclass(frozen=True)
class CoreState:
    """What the system reports of some cores; None where it reports nothing.

    Attributes:
        mhz: mean clock.
        celsius: the hottest sensor of the processor.
        throttles: how often the cores have been slowed for their heat since the machine started.
    """

    mhz: float | None = None
    celsius: float | None = None
    throttles: int | None = None

    @classmethod
    def of(cls, cores: Sequence[int]) -> CoreState:
        """The state of these cores now."""
        clocks = _clocks(cores)
        throttles = [_number(CPUS / f"cpu{core}/thermal_throttle/core_throttle_count") for core in cores]
        known = [int(count) for count in throttles if count is not None]
        return cls(sum(clocks) / len(clocks) if clocks else None, _celsius(), sum(known) if known else None)


@dataclass(frozen=True)
class Conditions:
    """What a timing has to say of the machine.

    Attributes:
        before, after: the state of the bench's cores when timing began, their work having warmed them up, and when it ended.
        waited_s: seconds that the bench waited for a quiet machine.
    """

    before: CoreState
    after: CoreState
    waited_s: float = 0.0

    @property
    def reading(self) -> str:
        """Clock and temperature after the timing, as far as they are known."""
        known = ((self.after.mhz, "MHz"), (self.after.celsius, "C"))
        return ", ".join(f"{value:.0f} {unit}" for value, unit in known if value is not None)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the figure should know: a wait, a clock that moved, a processor that was slowed for its heat."""
        found = []
        if self.waited_s >= WAIT_WORTH_SAYING:
            found.append(f"waited {self.waited_s:.0f} s for a quiet machine")
        if self.before.mhz and self.after.mhz and abs(self.after.mhz / self.before.mhz - 1) > CLOCK_MOVED:
            found.append(f"the clock moved from {self.before.mhz:.0f} to {self.after.mhz:.0f} MHz")
        if (self.after.throttles or 0) > (self.before.throttles or 0):
            found.append("the processor was slowed for its heat")
        return found


UNNOTED = Conditions(CoreState(), CoreState())
"""The conditions of a timing that noted none."""


def _clocks(cores: Sequence[int]) -> list[float]:
    """The clocks of cores in MHz, as far as the frequency driver, or else /proc/cpuinfo, reports them."""
    driven = [_number(CPUS / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    if found := [kilohertz / 1e3 for kilohertz in driven if kilohertz is not None]:
        return found
    return _cpuinfo_clocks(cores)


def _cpuinfo_clocks(cores: Sequence[int]) -> list[float]:
    if not CPUINFO.is_file():
        return []
    found, core = {}, -1
    for line in CPUINFO.read_text().splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor" and value.isdecimal():
            core = int(value)
        elif key == "cpu MHz":
            found[core] = float(value)
    return [found[core] for core in cores if core in found]


def _celsius() -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)  # not on every system
    chips = read() if read is not None else {}
    return max((sensor.current for name in SENSORS for sensor in chips.get(name, ())), default=None)


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return None  # this machine does not report it
