"""Doubts about a front, on points whose intervals are drawn by hand."""

import pytest
from slimfront.core.measurement import Measurement
from slimfront.studies.analysis.front import Objective, Point
from slimfront.studies.analysis.significance import beaten, beaten_by, doubts, is_lucky, twins

OBJECTIVES = [Objective.of("accuracy_drop"), Objective.of("latency_ms")]


def measured(name: str, value: float, half: float) -> Measurement:
    return Measurement(name, value, value - half, value + half, "ms" if name == "latency_ms" else "fraction")


def point(trial: int, drop: float, latency: float, noise: float = 0.001, test_drop: float | None = None) -> Point:
    measurements = {
        "accuracy_drop": measured("accuracy_drop", drop, noise),
        "latency_ms": measured("latency_ms", latency, 0.01),
    }
    if test_drop is not None:
        measurements["test_accuracy_drop"] = measured("test_accuracy_drop", test_drop, noise)
    values = tuple(m.value for m in list(measurements.values())[:2])
    lows, highs = zip(*((m.low, m.high) for m in list(measurements.values())[:2]), strict=True)
    return Point(trial, f"digest-{trial}", values, lows, highs, measurements)


@pytest.mark.parametrize(
    ("test_drop", "lucky"),
    [
        # Both half-widths 0.01: the standard error of the difference is 0.01 / 1.96 x sqrt(2) = 0.00722, 1.645 of it 0.01187.
        (0.0118, False),
        (0.0119, True),
        (-0.05, False),
        (None, None),
    ],
)
def test_a_drop_that_grows_beyond_the_noise_of_both_splits_was_luck(
    test_drop: float | None, lucky: bool | None
) -> None:
    assert is_lucky(point(0, 0.0, 1.0, noise=0.01, test_drop=test_drop).measurements) is lucky


def test_a_point_that_leads_by_noise_only_is_named_with_who_beats_it() -> None:
    slow, fast = point(0, 0.0, 2.0, noise=0.01), point(1, 0.005, 1.0, noise=0.01)
    assert beaten_by(slow, [slow, fast], OBJECTIVES) == [1]
    assert beaten_by(fast, [slow, fast], OBJECTIVES) == []
    assert beaten([slow, fast], OBJECTIVES) == {slow.trial: [1], fast.trial: []}
    assert doubts([slow, fast], OBJECTIVES) == ["trial 0 leads by noise only: beyond noise, trial 1 dominates it"]
    points = [slow, fast, point(2, 0.004, 1.5, noise=0.01)]
    assert doubts(points, OBJECTIVES)[0] == "trial 0 leads by noise only: beyond noise, trials 1, 2 dominate it"


def test_points_whose_intervals_touch_in_every_objective_are_twins() -> None:
    points = [point(0, 0.0, 1.0, noise=0.01), point(1, 0.005, 0.99, noise=0.01), point(2, 0.1, 0.5)]
    assert twins(points, OBJECTIVES) == [(0, 1)]
    assert doubts(points, OBJECTIVES) == ["trials 0 and 1 are the same within the noise"]


def test_luck_comes_first_and_a_long_list_is_cut_with_its_count() -> None:
    points = [point(trial, 0.0, 1.0, noise=0.01, test_drop=0.1 if trial == 4 else 0.0) for trial in range(5)]
    lines = doubts(points, OBJECTIVES)
    assert lines[0] == "trial 4 was lucky: accuracy_drop 0.0000 where it was searched, 0.1000 on the test split"
    assert len(lines) == 7
    assert lines[-1] == "and 5 more of the kind"  # ten pairs are twins


def test_a_front_distinguished_leaves_no_doubt() -> None:
    assert doubts([point(0, 0.0, 2.0), point(1, 0.1, 1.0)], OBJECTIVES) == []
