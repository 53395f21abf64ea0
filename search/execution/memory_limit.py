"""The memory a trial's process may take: its resident set with those of the processes it started, watched by a thread.

A limit of the operating system's on addresses would not do: torch and CUDA reserve many times what they use.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import TextIO

import psutil

MEMORY = "Memory: "
"""What the line of a report begins with that says how much was taken."""

POLL_S = 0.2
"""Seconds between two looks."""

GB = 1e9


@contextmanager
def memory_limited(limit_gb: float | None, report: TextIO | None) -> Iterator[None]:
    """End this process where it takes more memory than `limit_gb` within the block; what it took, and where it was, goes to `report`."""
    if limit_gb is None or report is None:
        yield
        return
    over = Event()
    watch = Thread(target=_watch, args=(limit_gb, report, over), name="memory limit", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(limit_gb: float, report: TextIO, over: Event) -> None:
    process = psutil.Process()
    while not over.wait(POLL_S):
        if (taken := memory_bytes(process, limit_gb * GB)) > limit_gb * GB:
            report.write(f"{MEMORY}{taken / GB:.3g} GB of {limit_gb:g} GB\n")
            report.flush()
            faulthandler.dump_traceback(report, all_threads=True)
            os._exit(1)


def memory_bytes(process: psutil.Process, enough: float = 0) -> float:
    """The bytes that a process and its descendants hold in memory, pages that they share counted once.

    That is slow to find out, and left at the larger sum of resident sets where it is not above `enough`.
    """
    family = [process, *process.children(recursive=True)]
    resident = sum(_of(each, lambda one: one.memory_info().rss) for each in family)
    return resident if resident <= enough else sum(_of(each, lambda one: one.memory_full_info().pss) for each in family)


def _of(process: psutil.Process, read: Callable[[psutil.Process], int]) -> int:
    with suppress(psutil.Error):  # it has ended, or is another user's
        return read(process)
    return 0
