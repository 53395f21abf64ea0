"""A time limit on code that may hang, such as a user's metric, and where code was, in words that a user can act on."""

from __future__ import annotations

import faulthandler
import signal
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from .errors import TimeLimitError

_OWN = Path(__file__).parents[1]

_last_resorts: list[float] = []
"""When, on the monotonic clock, each active limit of the main thread ends the process, innermost last."""

LAST_RESORT_S = 30
"""Seconds beyond the limit after which the process is ended: code in C is not interrupted, and users' code may catch anything."""


@contextmanager
def time_limited(seconds: float | None, what: str) -> Iterator[None]:
    """Raise where the block takes longer; outside the main thread, which alone gets signals, this does nothing.

    A block that cannot be interrupted ends the process, with a traceback of where it was on stderr. Of blocks within one another
    the outer one's limit holds on after the inner one.

    Args:
        seconds: None lets it take as long as it likes.
        what: what took longer than what, as in "scoring took longer than trial_timeout_s".

    Raises:
        TimeLimitError: it took longer; the message says where it was.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimitError(f"{what} = {seconds:g} s{_place(frame)}")

    began, previous = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    _last_resorts.append(began + seconds + LAST_RESORT_S)
    _end_at_last_resort()
    try:
        yield
    finally:
        _last_resorts.pop()
        _end_at_last_resort()
        outer = max(left - (time.monotonic() - began), 0.001) if left else 0
        signal.setitimer(signal.ITIMER_REAL, outer)  # perhaps somebody else's
        signal.signal(signal.SIGALRM, previous)


def _end_at_last_resort() -> None:
    """Have the process ended at the earliest last resort of the limits that are active now; not at all without."""
    faulthandler.cancel_dump_traceback_later()
    if _last_resorts:
        faulthandler.dump_traceback_later(max(min(_last_resorts) - time.monotonic(), 0.001), exit=True)


def _place(frame: FrameType | None) -> str:
    stack = traceback.extract_stack(frame)
    return place_text([Frame(each.filename, each.lineno or 0, each.name) for each in reversed(stack)])


@dataclass(frozen=True)
class Frame:
    """A line of a file within a function."""

    file: str
    line: int
    function: str


def place_text(frames: Sequence[Frame]) -> str:
    """The first frame that is the user's, else of slimfront's, else of all, as in " (in my_task.py:12 metric)"; "" of none.

    Args:
        frames: the innermost first.
    """
    readable = [frame for frame in frames if not _is_library(frame.file)]
    theirs = [frame for frame in readable if not frame.file.startswith(f"{_OWN}/")]
    for frame in (theirs or readable or frames)[:1]:
        return f" (in {Path(frame.file).name}:{frame.line} {frame.function})"
    return ""


def _is_library(file: str) -> bool:
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return file.startswith("<") or any(file.startswith(f"{folder}/") for folder in folders)
