"""Confidence intervals that measurements and scores share, with the papers that they come from.

All are two-sided at `CONFIDENCE` and deterministic: resampling draws from a generator of a fixed seed. SciPy's statistics
take half a second to import, so that only the functions that compute with them do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

CONFIDENCE = 0.95
"""The level of every interval that slimfront reports."""

NORMAL_QUANTILE = 1.959964
"""The 97.5 % quantile of the standard normal distribution: half of a 95 % interval, in standard errors."""

ONE_SIDED_NORMAL_QUANTILE = 1.644854
"""The 95 % quantile of the standard normal distribution, for one-sided tests at 5 %."""

BOOTSTRAP_RESAMPLES = 200
"""How many times a bootstrap resamples its data."""


def standard_error(low: float, high: float) -> float:
    """The standard error of which [low, high] is the 95 % normal interval."""
    return (high - low) / 2 / NORMAL_QUANTILE


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The score interval of a proportion of `successes` in `n` (Wilson 1927, JASA 22:209)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def resamples(n: int) -> Iterator[np.ndarray]:
    """Indices [n] of each resample of `n` samples with replacement; the same ones at each call."""
    generator = np.random.default_rng(0)
    return (generator.integers(0, n, n) for _ in range(BOOTSTRAP_RESAMPLES))


def percentile_interval(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """The percentile-bootstrap interval of a statistic (Efron & Tibshirani 1993, chapter 13).

    It is widened to contain the statistic of all samples, which lies outside where resampling biases the statistic.

    Args:
        value: of all samples.
        resampled: of resamples; those in which it has no value, as a correlation of equal samples, are NaN and not read.
    """
    if not np.isfinite(resampled).any():
        return value, value
    low, high = np.nanquantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return min(float(low), value), max(float(high), value)


def moving_block_indices(n: int, length: int) -> np.ndarray:
    """Indices of resamples of a series, shape [BOOTSTRAP_RESAMPLES, n] (Kuensch 1989, Annals of Statistics 17:1217).

    Blocks of `length` neighbours are drawn, so that correlation between neighbours stays in the resamples.
    """
    generator = np.random.default_rng(0)
    starts = generator.integers(0, n - length + 1, (BOOTSTRAP_RESAMPLES, -(-n // length)))
    return (starts[..., None] + np.arange(length)).reshape(BOOTSTRAP_RESAMPLES, -1)[:, :n]


def quantile_interval(samples: Sequence[float], quantile: float = 0.5) -> tuple[float, float]:
    """The interval of a quantile by order statistics (Conover 1999, Practical Nonparametric Statistics, section 3.2).

    Where there are too few samples for a bound, it is the smallest or largest of them.
    """
    from scipy.stats import quantile_test

    interval = quantile_test(samples, p=quantile).confidence_interval(CONFIDENCE)
    low = min(samples) if math.isnan(interval.low) else float(interval.low)
    return low, max(samples) if math.isnan(interval.high) else float(interval.high)


def rank_correlation_interval(spearman: float, n: int) -> tuple[float, float]:
    """The interval of Spearman's rank correlation of `n` pairs (Bonett & Wright 2000, Psychometrika 65:23)."""
    if abs(spearman) >= 1:
        return spearman, spearman
    half = NORMAL_QUANTILE * math.sqrt((1 + spearman**2 / 2) / (n - 3))
    return math.tanh(math.atanh(spearman) - half), math.tanh(math.atanh(spearman) + half)
