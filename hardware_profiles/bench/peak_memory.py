"""Peak memory of a process, as Linux reports it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

from ...core.errors import EvaluationError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""The value that resets VmHWM to the resident memory of the moment (Linux, Documentation/filesystems/proc.rst)."""


def has_peak_memory() -> bool:
    """Whether this system reports a process's peak memory and lets the process reset it."""
    return STATUS.exists() and CLEAR.exists()


def peak_growth(action: Callable[[], object]) -> int:
    """Bytes of resident memory that `action` needed at its peak beyond what this process held before it.

    Raises:
        EvaluationError: this system does not report it.
    """
    if not has_peak_memory():
        raise EvaluationError("only Linux reports a process's peak memory")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be used again and not counted
    before = _status("VmRSS")
    CLEAR.write_text(RESET_PEAK)
    action()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
