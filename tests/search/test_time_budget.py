"""What a run may still spend, by hand."""

import time

import pytest
from slimfront.search.time_budget import GRACE_SECONDS, TimeBudget


def budget(seconds: float | None, spent: float = 0.0, confirmation: float = 0.0) -> TimeBudget:
    return TimeBudget(seconds, time.monotonic() - spent, confirmation)


def test_time_counts_from_the_command() -> None:
    assert budget(100, spent=30).left == pytest.approx(70, abs=1)
    assert budget(100, spent=30).for_sensitivity == pytest.approx(10)  # of the whole
    assert not budget(100, spent=99).is_spent([], points=0)
    assert budget(100, spent=100).is_spent([], points=0)


def test_the_median_trial_and_the_confirmation_fit_in() -> None:
    assert not budget(100, spent=85).is_spent([1, 10, 100], points=0)
    assert budget(100, spent=91).is_spent([1, 10, 100], points=0)
    assert not budget(100, spent=85, confirmation=2).is_spent([], points=7)
    assert budget(100, spent=85, confirmation=2).is_spent([], points=8)
    assert not budget(100, spent=70, confirmation=2).is_spent([], points=1000)  # a quarter at most


def test_a_trial_that_hangs_ends_some_time_after_the_budget() -> None:
    assert budget(100, spent=40).limit([]) == pytest.approx(60 + GRACE_SECONDS, abs=1)
    assert budget(100, spent=40).limit([50]) == pytest.approx(60 + 150, abs=1)
    assert budget(None).limit([50]) is None
    assert not budget(None, spent=1e9).is_spent([1e9], points=5)
