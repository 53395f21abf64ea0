"""A study's reference comes back, and a quieter moment of it brings all milliseconds to one scale, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from slimfront.core.measurement import PREDICTED, Measurement
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.analysis.front import Objective, Point, hypervolume, reference_point
from slimfront.studies.store.judgement import judged, violations_of
from slimfront.studies.store.records import FreeDeployment, QuietMoment, ReferenceRecord
from slimfront.studies.store.rescaling import BUSY
from slimfront.studies.store.store import Store
from slimfront.studies.store.trial_state import TrialState

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
BUSY_MS, QUIET_MS = 4.0, 2.0
QUIET = Measurement("latency_ms", QUIET_MS, 1.9, 2.1, "ms", 30, "median on the quiet machine")
FIGURES = {"speedup_float32": Measurement("speedup_float32", 3.0, 2.9, 3.1, "ratio", 40, "paired-median")}
DEPLOYMENTS = (
    FreeDeployment("default", "bfloat16", True, FIGURES),
    FreeDeployment("float16", "float16", False, problem="its output is not finite"),
)
REFERENCE = ReferenceRecord("default", "openvino default: bfloat16", "why", DEPLOYMENTS, (QuietMoment(NOW, QUIET),))


def figures(speedup: float, drop: float | None = 0.0, reference_ms: float = BUSY_MS) -> list[Measurement]:
    """A trial's measurements; without a drop it ended before it was scored."""
    latency = reference_ms / speedup
    found = [
        Measurement("speedup", speedup, 0.9 * speedup, 1.1 * speedup, "ratio", 40, "paired-median"),
        Measurement("latency_ms", latency, 0.9 * latency, 1.1 * latency, "ms", 40, "paired-median x quiet reference"),
        Measurement("throughput", 1e3 / latency, 0.9e3 / latency, 1.1e3 / latency, "samples/s", 40, "samples"),
        Measurement("latency_p50_ms", latency + 1, latency, latency + 2, "ms", 40, "single runs of one timing"),
    ]
    return found + ([Measurement("accuracy_drop", drop, drop, drop, "fraction")] if drop is not None else [])


@pytest.fixture
def study(store: Store, make_spec) -> Store:
    """A study of four trials whose constraint two of them violate only at the busy moment, one of those before it was scored."""
    spec = make_spec(objectives=["accuracy_drop", "latency_ms", "throughput"], constraints=["latency_ms <= 2.5"])
    store.create_study(spec, "f", {}, {})
    store.set_baseline("demo", figures(1.0), "cpu", REFERENCE)
    for number, found in enumerate((figures(4.0, 0.01), figures(1.25, 0.02), figures(1.5, None), figures(0.5, 0.0))):
        store.start_trial("demo", number, Policy(width=0.1 * (number + 1)))
        store.add_measurements("demo", number, found)
        values = {each.name: each.value for each in found}
        violations = violations_of(spec.constraints, values)
        state, reason = judged(violations)
        store.finish_trial("demo", number, state, reason or None, violations)
    store.save_front("demo", [0], _volume(store, [0]))
    return store


def _volume(store: Store, numbers: list[int]) -> float:
    study = store.get_study("demo")
    objectives = [Objective.of(name) for name in study.spec.objectives]
    values = {name: measurement.value for name, measurement in study.baseline.items()}
    points = [Point.of(store.get_trial("demo", number), objectives) for number in numbers]
    return hypervolume(points, objectives, reference_point(values, objectives, study.spec.constraints))


def test_a_reference_comes_back_as_it_was_chosen(study):
    found = study.get_study("demo").reference
    assert found == REFERENCE
    assert found.over_float32 == FIGURES["speedup_float32"]


def test_a_study_of_before_has_none(store, make_spec):
    store.create_study(make_spec(), "f", {}, {})
    store.set_baseline("demo", figures(1.0), "cpu")
    assert store.get_study("demo").reference is None
    store.put_reference("demo", REFERENCE)
    assert store.get_study("demo").reference == REFERENCE


def test_a_quieter_moment_gives_what_would_have_been_measured_at_it(study):
    before = {trial.number: trial.measurements for trial in study.trials("demo")}
    study.put_reference("demo", REFERENCE, QUIET)
    baseline = study.get_study("demo").baseline
    assert (baseline["latency_ms"].value, baseline["latency_ms"].low, baseline["latency_ms"].n) == (QUIET_MS, 1.9, 30)
    for trial in study.trials("demo"):
        speedup = trial.measurements["speedup"].value
        for expected in figures(speedup, None, QUIET_MS)[:3]:
            found = trial.measurements[expected.name]
            assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
        assert trial.measurements["latency_p50_ms"] == before[trial.number]["latency_p50_ms"], "it is raw"
        for violation in trial.violations:
            assert violation.excess == pytest.approx(QUIET_MS / speedup - 2.5)
    assert study.current_front("demo").hypervolume == pytest.approx(_volume(study, [0]))


def test_trials_are_judged_again(study):
    assert [trial.state for trial in study.trials("demo")] == ["complete", *["infeasible"] * 3]
    study.put_reference("demo", REFERENCE, QUIET)
    states = {trial.number: (trial.state, trial.reason) for trial in study.trials("demo")}
    assert states[0] == (TrialState.COMPLETE, None)
    assert states[1] == (TrialState.COMPLETE, None), "it meets the bound, and has all objectives"
    assert states[2] == (TrialState.INTERRUPTED, BUSY), "it was not scored: it is to be tried again"
    assert states[3] == (TrialState.INFEASIBLE, "violates latency_ms <= 2.5: 4")


def test_a_moment_that_is_no_quieter_changes_nothing_but_the_record(study):
    before = study.trials("demo"), study.current_front("demo"), study.get_study("demo").baseline
    longer = ReferenceRecord("default", "n", "r", moments=(QuietMoment(NOW, QUIET), QuietMoment(NOW, QUIET)))
    study.put_reference("demo", longer)
    assert (study.trials("demo"), study.current_front("demo"), study.get_study("demo").baseline) == before
    assert study.get_study("demo").reference == longer


def test_predicted_milliseconds_stay(study):
    predicted = Measurement("latency_ms", 3.0, 3.0, 3.0, "ms", 80, f"{PREDICTED} by a latency table")
    study.add_measurements("demo", 0, [predicted])
    study.put_reference("demo", REFERENCE, QUIET)
    assert study.get_trial("demo", 0).measurements["latency_ms"] == predicted


def test_all_or_nothing(study):
    before = study.trials("demo"), study.get_study("demo")

    def refuse(*_: object) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        study.put_reference("demo", ReferenceRecord("float32", "other", "r"), QUIET, refuse)
    assert (study.trials("demo"), study.get_study("demo")) == before
