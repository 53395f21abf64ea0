"""How much one load of a file differs from the next, and what that leaves unknown of a timing.

A load lays weights, buffers and compiled kernels out in memory as it finds room, and is then a little faster or slower than
another load of the same file for as long as it lives. More runs of it do not show that, other loads do.
"""

from __future__ import annotations

import math

import numpy as np

from ...core.statistics import NORMAL_QUANTILE

LOADS = 3
"""The most loads of a file that one timing alternates between."""

LOADING_SHARE = 0.25
"""The share of a timing's seconds that the loads beyond the first may take, with their first runs; its pairs have the rest."""

LOADING_SPREAD = 0.013
"""The relative standard deviation between loads that is expected of a file; `benchmarks/measuring/latency_truth.py` measures
the coverage of intervals that include it."""

EXPECTED_LOADS = 2
"""The number of loads that `LOADING_SPREAD` weighs as much as, against the loads that were timed."""


def levelled(seconds: np.ndarray, loads: np.ndarray, calm_share: float) -> tuple[np.ndarray, float]:
    """Times of blocks as if every load were as fast as their geometric mean, and the variance of that mean.

    A load is as fast as the median of its calmest blocks.

    Args:
        seconds: of each block, shape [blocks].
        loads: which load each block is of, shape [blocks].
        calm_share: of a load's blocks that count.

    Returns:
        Shape [blocks], and the variance on a logarithmic scale.
    """
    logs = np.log(seconds)
    present, places = np.unique(loads, return_inverse=True)
    levels = np.array([np.quantile(logs[loads == load], calm_share / 2) for load in present])
    between = ((levels - levels.mean()) ** 2).sum()
    variance = (EXPECTED_LOADS * LOADING_SPREAD**2 + between) / (EXPECTED_LOADS + len(levels) - 1)
    return np.exp(logs - levels[places] + levels.mean()), variance / len(levels)


def widened(value: float, low: float, high: float, variance: float) -> tuple[float, float]:
    """The interval of a value with an independent error of `variance` on a logarithmic scale added."""
    down, up = (math.hypot(math.log(bound / value), NORMAL_QUANTILE * math.sqrt(variance)) for bound in (low, high))
    return value * math.exp(-down), value * math.exp(up)
