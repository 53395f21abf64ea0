"""How long an artifact takes from its file to its first outputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def load_seconds(file: Path, load_and_run: Callable[[], object]) -> float:
    """Seconds of the first `load_and_run` of a process, which reads `file` from its disk."""
    forget_pages(file)
    start = time.perf_counter()
    load_and_run()
    return time.perf_counter() - start


def forget_pages(file: Path) -> None:
    """Have Linux drop a file's pages from memory, unwritten ones after writing them; file systems in memory keep them."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
