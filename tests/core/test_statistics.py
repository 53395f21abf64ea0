"""Intervals: numbers worked out by hand, and how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm
from slimfront.core.statistics import (
    CONFIDENCE,
    NORMAL_QUANTILE,
    ONE_SIDED_NORMAL_QUANTILE,
    moving_block_indices,
    percentile_interval,
    quantile_interval,
    rank_correlation_interval,
    resamples,
    standard_error,
    wilson_interval,
)


def test_the_quantiles_are_those_of_the_normal_distribution():
    assert pytest.approx(norm.ppf((1 + CONFIDENCE) / 2), abs=1e-6) == NORMAL_QUANTILE
    assert pytest.approx(norm.ppf(CONFIDENCE), abs=1e-6) == ONE_SIDED_NORMAL_QUANTILE
    assert standard_error(-NORMAL_QUANTILE, NORMAL_QUANTILE) == 1


def test_the_wilson_interval_is_that_of_its_formula():
    z, n, share = NORMAL_QUANTILE, 10, 0.9
    centre, half = share + z**2 / 2 / n, z * math.sqrt(share * (1 - share) / n + z**2 / 4 / n**2)
    assert wilson_interval(9, 10) == pytest.approx(((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)))
    assert wilson_interval(0, 10)[0] == 0


def test_blocks_of_a_resample_are_runs_of_neighbours():
    drawn = moving_block_indices(10, 4)
    assert drawn.shape[1] == 10
    assert drawn.min() >= 0
    assert drawn.max() <= 9
    assert (np.diff(drawn[:, :4], axis=1) == 1).all()


def test_a_perfect_rank_correlation_has_no_width():
    assert rank_correlation_interval(1.0, 20) == (1.0, 1.0)
    low, high = rank_correlation_interval(0.0, 103)
    assert (low, high) == pytest.approx((-math.tanh(0.1959964), math.tanh(0.1959964)))


def test_the_bootstrap_of_a_mean_is_about_the_normal_interval():
    values = np.random.default_rng(0).normal(10, 2, 500)
    low, high = percentile_interval(values.mean(), np.array([values[chosen].mean() for chosen in resamples(500)]))
    half = 1.96 * values.std() / math.sqrt(500)
    assert low == pytest.approx(values.mean() - half, abs=0.4 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.4 * half)


@given(st.integers(0, 2**32 - 1))
def test_the_interval_of_the_median_is_made_of_order_statistics(seed):
    samples = np.random.default_rng(seed).normal(size=24)
    # The largest k with at most 2.5 % of 24 fair coins showing fewer than k heads is 7: the 7th from either end.
    assert binom.cdf(6, 24, 0.5) <= 0.025 < binom.cdf(7, 24, 0.5)
    assert quantile_interval(samples) == (np.sort(samples)[6], np.sort(samples)[-7])


def test_the_interval_of_a_quantile_covers_it_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for quantile, truth in ((0.5, 1.0), (0.9, math.exp(1.2815516))):
        intervals = [quantile_interval(generator.lognormal(0, 1, 100), quantile) for _ in range(200)]
        assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.91


def test_a_bound_that_the_samples_are_too_few_for_is_the_outermost_of_them():
    assert quantile_interval([3.0, 1.0, 2.0]) == (1, 3)
    assert quantile_interval(list(range(100)), 0.99)[1] == 99
