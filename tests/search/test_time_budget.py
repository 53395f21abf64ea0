"""What a run may still spend, by hand."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from slimfront.core.errors import SearchError
from slimfront.search.run import run_search
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


def test_a_budget_that_is_over_before_the_first_trial_says_so(tiny_spec, tmp_path: Path) -> None:
    spec = tiny_spec(budget={"trials": 3, "timeout_s": 60}, sensitivity=False, workers=0)
    with pytest.raises(SearchError, match="no trial ended before the time was over; give it a longer timeout_s"):
        run_search(
            spec, f"sqlite:///{tmp_path}/s.db", tmp_path / "a", Console(file=io.StringIO()), time.monotonic() - 60
        )
