"""The front, its hypervolume and dominance under noise: properties, and numbers worked out by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS
from slimfront.studies.analysis.front import (
    Objective,
    Point,
    dominates,
    dominates_beyond_noise,
    hypervolume,
    pareto_front,
    reference_point,
)
from slimfront.studies.analysis.significance import twins
from slimfront.studies.study_file.constraint import Constraint

DROP, LATENCY, SPEEDUP, FLOPS = map(Objective.of, ("accuracy_drop", "latency_ms", "speedup", "flops"))
EACH_COUNT = {2: (DROP, SPEEDUP), 3: (DROP, SPEEDUP, LATENCY), 4: (DROP, SPEEDUP, LATENCY, FLOPS)}


def point(trial: int, *values: float, noise: float = 0.0) -> Point:
    lows, highs = tuple(v - noise for v in values), tuple(v + noise for v in values)
    return Point(trial, f"digest-{trial}", values, lows, highs)


def trials(front: list[Point]) -> list[int]:
    return [member.trial for member in front]


@st.composite
def clouds(draw) -> tuple[list[Point], tuple[Objective, ...]]:
    """Points on a coarse grid, so that ties and duplicates are common, and the objectives they are of."""
    objectives = EACH_COUNT[draw(st.integers(2, 4))]
    values = st.tuples(*[st.integers(-3, 3).map(float) for _ in objectives])
    cloud = draw(st.lists(values, max_size=40))
    return [point(trial, *vector) for trial, vector in enumerate(cloud)], objectives


@given(clouds(), st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order(cloud, random):
    points, objectives = cloud
    shuffled = random.sample(points, len(points))
    assert pareto_front(shuffled, objectives) == pareto_front(points, objectives)


@given(clouds())
def test_points_given_twice_change_nothing(cloud):
    points, objectives = cloud
    later = [point(p.trial + len(points), *p.values) for p in points]
    assert pareto_front(points + later, objectives) == pareto_front(points, objectives)


@given(clouds())
def test_no_member_is_dominated_by_any_point(cloud):
    points, objectives = cloud
    for member in pareto_front(points, objectives):
        assert not any(dominates(other, member, objectives) for other in points)


@given(clouds())
def test_everyone_else_is_beaten_by_a_member_or_equals_an_earlier_one(cloud):
    points, objectives = cloud
    front = pareto_front(points, objectives)
    for other in points:
        if other in front:
            continue
        assert any(
            dominates(member, other, objectives) or (member.values == other.values and member.trial < other.trial)
            for member in front
        )


@given(clouds())
def test_the_front_of_a_front_is_itself(cloud):
    points, objectives = cloud
    front = pareto_front(points, objectives)
    assert pareto_front(front, objectives) == front


@settings(max_examples=50)
@given(clouds())
def test_only_the_front_counts_for_the_hypervolume(cloud):
    points, objectives = cloud
    reference = [5.0 * objective.sign for objective in objectives]
    front = pareto_front(points, objectives)
    assert hypervolume(points, objectives, reference) == pytest.approx(hypervolume(front, objectives, reference))


def test_a_front_by_hand():
    points = [point(3, 0.0, 4.0), point(0, 1.0, 2.0), point(1, 1.0, 3.0), point(4, 2.0, 1.0), point(2, 2.0, 2.0)]
    assert trials(pareto_front(points, [DROP, LATENCY])) == [0, 3, 4]


def test_a_maximised_objective_is_better_when_larger():
    points = [point(0, 0.0, 1.0), point(1, 0.0, 2.0), point(2, 1.0, 2.0), point(3, 1.0, 3.0)]
    assert trials(pareto_front(points, [DROP, SPEEDUP])) == [1, 3]


def test_of_equals_the_earliest_is_listed():
    points = [point(7, 1.0, 1.0), point(2, 1.0, 1.0), point(5, 1.0, 1.0)]
    assert trials(pareto_front(points, [DROP, LATENCY])) == [2]


def test_no_points_no_front():
    assert pareto_front([], [DROP, LATENCY]) == []


@pytest.mark.parametrize("where", ["values", "lows", "highs"])
def test_nan_is_no_coordinate(where):
    numbers = {"values": (0.0, 1.0), "lows": (0.0, 1.0), "highs": (0.0, 1.0), where: (0.0, float("nan"))}
    with pytest.raises(ValueError, match="trial 3 has a NaN"):
        Point(3, "d", **numbers)


def test_a_point_of_other_objectives_is_refused():
    with pytest.raises(ValueError, match="every point needs 3 values"):
        pareto_front([point(0, 1.0, 1.0)], [DROP, LATENCY, FLOPS])
    with pytest.raises(ValueError, match="different lengths"):
        Point(0, "d", (1.0, 2.0), (1.0,), (1.0, 2.0))


class MeasuredTrial:
    number = 4
    digest = "abcd"

    def __init__(self, *measurements: Measurement) -> None:
        self.measurements = {measurement.name: measurement for measurement in measurements}


def test_a_point_is_made_of_a_trial_s_measurements():
    latency = Measurement("latency_ms", 2.0, 1.5, 2.5, "ms", 9, "paired-median")
    drop = Measurement("accuracy_drop", 0.25, 0.125, 0.375, "fraction", 100, "wilson")
    made = Point.of(MeasuredTrial(latency, drop), [DROP, LATENCY])
    assert (made.trial, made.policy_digest) == (4, "abcd")
    assert (made.values, made.lows, made.highs) == ((0.25, 2.0), (0.125, 1.5), (0.375, 2.5))
    assert made.measurements["latency_ms"] == latency
    with pytest.raises(ValueError, match="trial 4 has no accuracy_drop"):
        Point.of(MeasuredTrial(latency), [DROP, LATENCY])


def test_objectives_take_unit_and_direction_from_the_catalogue():
    assert Objective.of("speedup") == Objective("speedup", "ratio", "maximize")
    assert {Objective.of(name).sign for name in METRICS} == {1, -1}


# Noise


def test_a_difference_inside_the_noise_is_no_difference():
    a, b = point(0, 1.0, 1.0, noise=0.5), point(1, 2.0, 1.5, noise=0.5)
    assert dominates(a, b, [DROP, LATENCY])
    assert not dominates_beyond_noise(a, b, [DROP, LATENCY])  # 1.5 touches 1.5
    assert twins([a, b], [DROP, LATENCY]) == [(0, 1)]


def test_better_in_one_beyond_noise_and_worse_in_none_dominates():
    a, b = point(0, 1.0, 1.25, noise=0.25), point(1, 2.0, 1.0, noise=0.25)
    assert not dominates(a, b, [DROP, LATENCY])
    assert dominates_beyond_noise(a, b, [DROP, LATENCY])
    assert not dominates_beyond_noise(b, a, [DROP, LATENCY])
    assert not twins([a, b], [DROP, LATENCY])


def test_noise_of_a_maximised_objective():
    slow, fast = point(0, 0.0, 1.0, noise=0.25), point(1, 0.0, 2.0, noise=0.25)
    assert dominates_beyond_noise(fast, slow, [DROP, SPEEDUP])
    assert not dominates_beyond_noise(slow, fast, [DROP, SPEEDUP])


def test_a_trade_beyond_noise_dominates_neither_way():
    a, b = point(0, 1.0, 2.0, noise=0.25), point(1, 2.0, 1.0, noise=0.25)
    assert not dominates_beyond_noise(a, b, [DROP, LATENCY])
    assert not dominates_beyond_noise(b, a, [DROP, LATENCY])
    assert not twins([a, b], [DROP, LATENCY])


def test_dominance_beyond_noise_may_run_in_a_circle():
    """Why it does not define the list: each of these three dominates the next."""
    wide = {0: (0.0, 10.0), 1: (2.0, 3.0), 2: (7.0, 8.0)}  # neither end separates from 0; 1 and 2 do

    def circle(i: int) -> Point:
        bounds = [wide[(k - i) % 3] for k in (1, 0, 2)]
        middle = tuple((low + high) / 2 for low, high in bounds)
        return Point(i, "d", middle, tuple(b[0] for b in bounds), tuple(b[1] for b in bounds))

    objectives = [LATENCY, FLOPS, DROP]
    wins = {
        (a, b)
        for a, b in itertools.permutations(range(3), 2)
        if dominates_beyond_noise(circle(a), circle(b), objectives)
    }
    assert wins in ({(0, 1), (1, 2), (2, 0)}, {(1, 0), (2, 1), (0, 2)})


@given(clouds())
def test_without_noise_both_notions_agree(cloud):
    points, objectives = cloud
    for a, b in itertools.islice(itertools.permutations(points, 2), 50):
        assert dominates_beyond_noise(a, b, objectives) == dominates(a, b, objectives)


# Hypervolume


def test_hypervolume_of_a_staircase():
    """Boxes to (4, 4): 3 x 1 of (1, 3), then 2 x 1 more of (2, 2), then 1 x 1 more of (3, 1)."""
    points = [point(0, 1.0, 3.0), point(1, 2.0, 2.0), point(2, 3.0, 1.0)]
    assert hypervolume(points, [DROP, LATENCY], (4.0, 4.0)) == pytest.approx(6.0)


def test_hypervolume_with_a_maximised_objective():
    """Drop 1 below 4, speed-up 2 above 0: 3 x 2."""
    assert hypervolume([point(0, 1.0, 2.0)], [DROP, SPEEDUP], (4.0, 0.0)) == pytest.approx(6.0)


def test_hypervolume_of_three_objectives():
    """Two unit-wide boxes 2 x 1 x 1 and 1 x 2 x 1 share 1 x 1 x 1."""
    points = [point(0, 0.0, 1.0, 1.0), point(1, 1.0, 0.0, 1.0)]
    assert hypervolume(points, [DROP, LATENCY, FLOPS], (2.0, 2.0, 2.0)) == pytest.approx(3.0)


def test_points_beyond_the_reference_add_nothing():
    points = [point(0, 1.0, 1.0), point(1, 0.0, 2.0), point(2, 5.0, -5.0)]
    assert hypervolume(points, [DROP, LATENCY], (2.0, 2.0)) == pytest.approx(1.0)


def test_no_points_no_volume():
    assert hypervolume([], [DROP, LATENCY], (1.0, 1.0)) == 0.0


def test_the_reference_stands_a_tenth_beyond_the_baseline():
    objectives = [DROP, LATENCY, SPEEDUP]
    assert reference_point({"latency_ms": 20.0, "speedup": 1.0}, objectives) == pytest.approx((0.1, 22.0, 0.0))


@pytest.mark.parametrize(
    ("texts", "drop"),
    [
        (["accuracy_drop <= 0.05"], 0.05),
        (["accuracy_drop < 0.25", "accuracy_drop <= 0.02", "latency_ms <= 3"], 0.02),
        (["accuracy_drop >= 0.01", "accuracy_drop <= 0"], 0.1),
    ],
)
def test_the_tightest_positive_bound_is_the_reference_of_accuracy_drop(texts, drop):
    constraints = [Constraint.parse(text, frozenset(METRICS)) for text in texts]
    assert reference_point({"latency_ms": 1.0}, [DROP, LATENCY], constraints)[0] == drop


@pytest.mark.parametrize("name", ["accuracy_drop", "kl"])
def test_a_metric_that_is_0_uncompressed_has_a_reference_to_improve_on(name):
    assert reference_point({name: 0.0}, [Objective.of(name)])[0] > 0


def test_a_reference_needs_the_baseline():
    with pytest.raises(ValueError, match="the baseline has no latency_ms"):
        reference_point({}, [DROP, LATENCY])
