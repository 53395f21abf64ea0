"""Short blocks of runs of one model, each run timed by itself: what warms up, and what is compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

BLOCK_SECONDS = 0.01
"""The duration of one block of inferences in seconds, long enough for one undisturbed run."""

FIRST_RUNS = 2
"""The runs of a load that find its kernels."""

Run = Callable[[], object]


@runtime_checkable
class SelfTimed(Protocol):
    """A run on a device that has a clock of its own, such as the events of a GPU."""

    def __call__(self) -> object: ...

    def seconds(self) -> float:
        """Run once; how long the device took."""
        ...


def warm_up(run: Run, seconds: float) -> float:
    """Run until a stretch is no faster than the one before it, for at most about `seconds`; returns seconds of a run."""
    deadline = time.perf_counter() + seconds
    stretch = BLOCK_SECONDS * 2
    previous, latest = _stretch(run, stretch), _stretch(run, stretch)
    while latest < 0.98 * previous and time.perf_counter() < deadline:
        previous, latest = latest, _stretch(run, stretch)
    return latest


def block(run: Run, count: int) -> list[float]:
    """Seconds of each of `count` runs without the first, which only counts where it is the only one."""
    if isinstance(run, SelfTimed):
        seconds = [run.seconds() for _ in range(count)]
    else:
        seconds = [_wall_seconds(run) for _ in range(count)]
    return seconds[1:] or seconds


def _stretch(run: Run, seconds: float) -> float:
    """Seconds of the fastest run in a stretch of `seconds`."""
    end = time.perf_counter() + seconds
    fastest = math.inf
    while True:
        fastest = min(fastest, *block(run, 1))
        if time.perf_counter() >= end:
            return fastest


def _wall_seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
