"""Several loads of two files for one timing, as far as its time and the memory allow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..runtimes.base import Session
from .loads import LOADING_SHARE, LOADS
from .room import Room

MEMORY_SHARE = 0.5
"""The share of the free memory that one more load of both files may take."""


@dataclass(frozen=True)
class Loader:
    """Loads files and runs each load until its kernels are found.

    Attributes:
        load: of a file.
        warm: runs a load as it will be timed, at each shape.
        room: what loads take and may take.
    """

    load: Callable[[Path], Session]
    warm: Callable[[Session], object]
    room: Room

    def several(
        self, candidate: Path, reference: Path, kept: Session, seconds: float
    ) -> tuple[list[Session], list[Session], float]:
        """Loads of a candidate and as many of the reference, and what of the seconds is left: one each where loading and the first runs
        take long, or the memory is short.

        Args:
            kept: the load of the reference that stays.
        """
        start, taken = time.perf_counter(), self.room.taken()
        candidates, references = [self._warmed(candidate)], [kept]
        now = loaded = time.perf_counter()
        both_s = 2 * (loaded - start)
        both_bytes = 2 * max(self.room.taken() - taken, candidate.stat().st_size, reference.stat().st_size)
        while len(candidates) < LOADS and now - loaded + both_s <= LOADING_SHARE * seconds:
            if both_bytes > MEMORY_SHARE * self.room.free():
                break
            candidates.append(self._warmed(candidate))
            references.append(self._warmed(reference))
            before, now = now, time.perf_counter()
            both_s = now - before
        return candidates, references, seconds - (now - loaded)

    def _warmed(self, file: Path) -> Session:
        session = self.load(file)
        self.warm(session)
        return session
