"""Memory bandwidth by copying, of arrays that stay in a cache and of some that do not (STREAM's copy, McCalpin 1995)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

COPY_BYTES = 2**27
"""Bytes of the array that each core copies, more than any cache holds."""

SMALLER_BYTES = (2**18, 2**20, 2**22, 2**24)
"""Bytes of further arrays, most of which stay in a cache."""

LOOP_BYTES = 2**25
"""The fewest bytes that one timing copies, by copying a small array several times."""


def memory_bandwidth(cores: Sequence[int], array_bytes: int, repeats: int = 8) -> float:
    """10^9 bytes a second read and written while every core copies an array of its own."""

    def copy(core: int) -> None:
        os.sched_setaffinity(0, [core])  # of this thread alone
        for _ in range(times):
            np.copyto(targets[core], sources[core])

    times = max(1, LOOP_BYTES // array_bytes)
    sources = {core: np.ones(array_bytes // 8) for core in cores}
    targets = {core: np.ones(array_bytes // 8) for core in cores}
    seconds = []
    with ThreadPoolExecutor(len(cores)) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(copy, cores))
            seconds.append(time.perf_counter() - start)
    return 2 * array_bytes * times * len(cores) / min(seconds) / 1e9


def bandwidth_by_bytes(cores: Sequence[int]) -> dict[int, float]:
    """Bytes that all cores read and write again and again -> 10^9 bytes a second, from the smallest."""
    sizes = [size for size in SMALLER_BYTES if size < COPY_BYTES] + [COPY_BYTES]
    return {2 * size * len(cores): memory_bandwidth(cores, size) for size in sizes}
