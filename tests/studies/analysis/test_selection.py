"""Which point each rule picks, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from slimfront.core.errors import UserError
from slimfront.core.measurement import Measurement
from slimfront.studies.analysis.front import Objective, Point
from slimfront.studies.analysis.selection import RULES, pick

OBJECTIVES = [Objective.of("accuracy_drop"), Objective.of("latency_ms")]


def point(trial: int, drop: float, latency: float, **measured: float) -> Point:
    measured |= {"accuracy_drop": drop, "latency_ms": latency}
    measurements = {name: Measurement.exact(name, value, "by hand") for name, value in measured.items()}
    values = (drop, latency)
    return Point(trial, f"digest-{trial}", values, values, values, measurements)


# Scaled to [0, 1] the sums are 1, 0.2 + 0.25 = 0.45, 0.5 + 0.125 = 0.625 and 1: trial 1 lies deepest.
FRONT = [
    point(0, 0.00, 10.0, artifact_bytes=400, accuracy=0.98),
    point(1, 0.02, 4.0, artifact_bytes=300, accuracy=0.96),
    point(2, 0.05, 3.0, artifact_bytes=100, accuracy=0.93),
    point(3, 0.10, 2.0, artifact_bytes=200, accuracy=0.88),
]


@pytest.mark.parametrize(("rule", "trial"), [("knee", 1), ("fastest", 3), ("smallest", 2), ("most-accurate", 0)])
@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_each_rule_picks_its_point(rule, trial, order):
    assert pick(FRONT[::order], OBJECTIVES, rule).trial == trial


def test_the_knee_does_not_depend_on_units():
    scaled = [point(p.trial, p.values[0] * 1000, p.values[1] / 1000 + 7) for p in FRONT]
    assert pick(scaled, OBJECTIVES, "knee").trial == 1


def test_the_knee_of_a_maximised_objective():
    """Drop scaled 0, 0.2, 1 and speed-up missing 1, 0.25, 0: the middle one."""
    objectives = [Objective.of("accuracy_drop"), Objective.of("speedup")]
    front = [Point(i, "d", v, v, v) for i, v in enumerate([(0.0, 1.0), (0.02, 4.0), (0.1, 5.0)])]
    assert pick(front, objectives, "knee").trial == 1


def test_the_knee_gives_nothing_up_for_a_difference_that_is_small_next_to_the_reference():
    """Three per cent of 10 ms are all that the front differs by: scaled over it alone, trial 1 would lie deepest."""
    front = [point(0, 0.0, 3.1), point(1, 0.02, 2.9), point(2, 0.05, 2.8)]
    reference = {"accuracy_drop": 0.0, "latency_ms": 10.0}
    measured = {name: Measurement.exact(name, value, "by hand") for name, value in reference.items()}
    assert pick(front, OBJECTIVES, "knee").trial == 1
    assert pick(front, OBJECTIVES, "knee", measured).trial == 0


def test_losses_within_their_uncertainty_do_not_outweigh_speed():
    drops, latencies = (0.0, 0.0004, 0.001), (5.0, 3.0, 2.5)
    exact = [point(number, *values) for number, values in enumerate(zip(drops, latencies, strict=True))]
    unsure = [
        replace(p, lows=(p.values[0] - 0.01, p.values[1]), highs=(p.values[0] + 0.01, p.values[1])) for p in exact
    ]
    reference = {
        "accuracy_drop": Measurement.exact("accuracy_drop", 0, "by hand"),
        "latency_ms": Measurement.exact("latency_ms", 10, "by hand"),
    }
    assert pick(exact, OBJECTIVES, "knee", reference).trial == 0
    assert pick(unsure, OBJECTIVES, "knee", reference).trial == 2


def test_on_a_straight_front_the_earliest_trial_is_the_knee():
    front = [point(5, 0.1, 2.0), point(2, 0.2, 1.0), point(3, 0.3, 0.0)]
    assert pick(front, OBJECTIVES, "knee").trial == 2


@pytest.mark.parametrize("rule", RULES)
def test_a_front_of_one_is_the_pick(rule):
    assert pick(FRONT[:1], OBJECTIVES, rule) == FRONT[0]


def test_of_equally_small_points_the_one_nearer_the_knee():
    front = [point(p.trial, *p.values, artifact_bytes=100) for p in FRONT]
    assert pick(front, OBJECTIVES, "smallest").trial == 1


def test_an_unknown_rule_suggests_the_nearest_or_lists_them():
    with pytest.raises(UserError, match=r"^no rule 'fast' to pick by; did you mean fastest\?$"):
        pick(FRONT, OBJECTIVES, "fast")
    with pytest.raises(UserError, match=r"known are fastest, knee, most-accurate, smallest$"):
        pick(FRONT, OBJECTIVES, "xyz")


def test_an_empty_front_has_no_pick():
    with pytest.raises(UserError, match=r"^the front is empty"):
        pick([], OBJECTIVES, "knee")


def test_a_point_not_measured_for_the_rule_is_named():
    with pytest.raises(UserError, match=r"^trial 1 has no artifact_bytes to pick by$"):
        pick([FRONT[0], point(1, 0.1, 0.1)], OBJECTIVES, "smallest")
