"""Waiting for a quiet machine: until other programs leave the bench's cores alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

STAT = Path("/proc/stat")

BUSY_SHARE = 0.1
"""The share of the bench's cores that other programs may use on a quiet machine."""

LOOK_SECONDS = 0.1
"""The seconds of one look: ten ticks of the clock that Linux counts a core's time in."""

WAIT_SECONDS = float(os.environ.get("SLIMFRONT_BENCH_WAIT_S", "3"))
"""The most seconds that one timing waits for a quiet machine; 0 never waits, and times nothing again."""


class QuietWait:
    """Waits for a quiet machine, and less and less where that is in vain.

    A wait that reaches its limit halves the limit of the next one; a quiet machine restores it. A machine that is never
    quiet costs a process twice `limit` in all.

    Args:
        busy: seconds of a look -> the share of the cores that other programs used.
    """

    def __init__(self, busy: Callable[[float], float], limit: float = WAIT_SECONDS) -> None:
        self._busy, self._most, self._limit = busy, limit, limit
        self._waited_s = 0.0

    @property
    def is_patient(self) -> bool:
        """Whether it may ever wait."""
        return self._most >= LOOK_SECONDS

    def taken(self) -> float:
        """Seconds waited since this was last asked."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    def __call__(self) -> None:
        """Return once the machine is quiet, or the limit reached."""
        if self._limit < LOOK_SECONDS:
            return
        started = time.monotonic()
        while self._busy(LOOK_SECONDS) > BUSY_SHARE:
            waited = time.monotonic() - started
            if waited >= self._limit:
                self._limit /= 2
                self._waited_s += waited
                return
        self._limit = self._most
        self._waited_s += max(0.0, time.monotonic() - started - LOOK_SECONDS)  # the last look found it quiet


def busy_share(cores: Sequence[int], seconds: float) -> float:
    """The share of `cores` that other processes, or other guests of the same host, used while this one slept for `seconds`."""
    (busy, total), own = _ticks(cores), time.process_time()
    time.sleep(seconds)
    (busy_after, total_after), own_after = _ticks(cores), time.process_time()
    passed = total_after - total
    others = busy_after - busy - (own_after - own) * os.sysconf("SC_CLK_TCK")
    return max(0.0, others / passed) if passed else 0.0


def _ticks(cores: Sequence[int]) -> tuple[int, int]:
    """Ticks in which the cores were busy, stolen ones included, and all ticks (Linux, `man 5 proc_stat`)."""
    wanted, busy, total = {f"cpu{core}" for core in cores}, 0, 0
    for line in STAT.read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, idle, iowait, *rest = map(int, fields[:8])  # a guest's time is in the user's
            used = user + nice + system + sum(rest)
            busy, total = busy + used, total + used + idle + iowait
    return busy, total
