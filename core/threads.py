"""What a process computes on: the names of devices, how many threads it may use, and how to change torch's number of threads temporarily.

Threads of one operation wait for each other by spinning: more of them than cores take seconds where one takes milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

from loky import cpu_count

DeviceKind = Literal["auto", "cpu", "cuda"]
"""Where a study computes: "auto" is a CUDA GPU where this process sees one, and else wherever the workload's own model is."""


def usable_threads(cores: Collection[int] | None = None) -> int:
    """One thread for each of `cores` (all that this process is allowed, unless given), and at most as many as its share
    of the machine carries: a container may see every core and have the time of one."""
    cores = os.sched_getaffinity(0) if cores is None else cores
    return min(len(cores), cpu_count())


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch on `count` threads inside; afterwards on as many as before, whatever ran inside."""
    import torch  # which takes a second, and most of what counts cores does without

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
