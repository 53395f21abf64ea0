"""What times artifacts: a `Bench` on this machine, or one on the machine where a remote target is."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Protocol, Self

from ...core.errors import UserError
from .paired_timing import PairedTiming


def _seconds(text: str) -> float:
    """A number of seconds above 0.

    Raises:
        UserError: it is none.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"SLIMFRONT_TIMING_S={text}: expected seconds above 0, as in 0.4")
    return seconds


TIMING_SECONDS = _seconds(os.environ.get("SLIMFRONT_TIMING_S", "1"))
"""The most seconds of one timing of a trial, or of the uncompressed model; a point of the front is confirmed in twice as many."""


class Timer(Protocol):
    """Times artifacts of one target against the uncompressed model's; its methods are documented in `bench.Bench`."""

    def time(self, candidate: Path, seconds: float = 2.0, quiet_reference_ms: float = math.inf) -> PairedTiming:
        """A candidate timed against the reference."""
        ...

    def time_reference(self, seconds: float = 1.0) -> tuple[float, float, float, int]:
        """Median, 95 % interval and number of blocks of the reference's latency in milliseconds."""
        ...

    def peak_memory(self, candidate: Path) -> int:
        """Bytes that loading and running `candidate` needs at its peak."""
        ...

    def load_times(self, candidate: Path, repeats: int) -> list[float]:
        """Seconds from a file that is not in memory to its first outputs, in fresh processes."""
        ...

    def energy(self, candidate: Path, seconds: float, repeats: int) -> tuple[str, list[float]]:
        """Which counter was read, and joules of one batch in each of `repeats` stretches."""
        ...

    def executed_precisions(self, candidate: Path) -> dict[str, str]:
        """Layer -> the precision it runs in, by the runtime's own report on the target's machine."""
        ...

    def ready(self) -> None:
        """Return once it can time without first starting anything."""
        ...

    def close(self) -> None:
        """Release the processes that it uses."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
