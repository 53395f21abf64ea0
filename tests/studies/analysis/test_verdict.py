"""Whether a search found anything worth deploying, and what bounds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.analysis.verdict import verdict
from slimfront.studies.store.judgement import judged, violations_of
from slimfront.studies.store.store import Store


def figures(speedup: float, drop: float, half: float = 0.05) -> list[Measurement]:
    spread = {"speedup": half * speedup, "latency_ms": half / speedup}
    values = {"speedup": speedup, "latency_ms": 1 / speedup, "accuracy_drop": drop}
    return [
        Measurement(name, value, value - spread.get(name, 0.01), value + spread.get(name, 0.01), METRICS[name].unit)
        for name, value in values.items()
    ]


@pytest.fixture
def found(tmp_path: Path, make_spec):
    """The verdict on a study whose trials, after the reference itself, have these speed-ups and drops."""

    def find(*trials: tuple[float, float], constraints: tuple[str, ...] = ()) -> str | None:
        spec = make_spec(constraints=list(constraints), budget={"trials": len(trials) + 1})
        with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
            store.create_study(spec, "f", {}, {})
            store.set_baseline("demo", figures(1.0, 0.0), "cpu")
            front = []
            for number, (speedup, drop) in enumerate([(1.0, 0.0), *trials]):
                measured = figures(speedup, drop)
                policy = Policy(width=1 - 0.05 * number, float_precision="default")
                store.start_trial("demo", number, policy)
                store.add_measurements("demo", number, measured)
                violations = violations_of(spec.constraints, {each.name: each.value for each in measured})
                state, reason = judged(violations)
                store.finish_trial("demo", number, state, reason or None, violations)
                front += [number] if not reason else []
            store.save_front("demo", front, 0.0)
            return verdict(store, "demo")

    return find


def test_a_faster_point_is_worth_it(found):
    assert found((2.0, 0.01)) is None


def test_nothing_is_said_before_anything_was_tried(found):
    assert found() is None


def test_a_lead_within_noise_is_none(found):
    sentence = found((1.06, 0.0))
    assert sentence.startswith("no gain: no point of the front is better than the reference in latency_ms")
    assert sentence.endswith("the fastest trial, 1, ran 1.06x as fast, with an accuracy drop of 0.0000")


def test_what_compression_does_not_make_faster_bounds_it(found):
    assert "ran 1.01x as fast, which is no gain" in found((1.01, 0.0), (0.7, 0.0))


def test_the_accuracy_asked_for_bounds_it(found):
    sentence = found((3.0, 0.05), (1.0, 0.0), constraints=("accuracy_drop <= 0.02",))
    assert sentence.endswith("trial, 1, ran 3.00x as fast, but violates accuracy_drop <= 0.02 by 0.0300")


def test_a_point_that_lost_all_accuracy_is_worth_nothing(found):
    assert found((3.0, 0.5)).endswith("ran 3.00x as fast, with an accuracy drop of 0.5000")
