"""What a search learns from earlier studies of the same workload."""

from pathlib import Path

import pytest
from slimfront.core.measurement import Measurement
from slimfront.search.transfer import earlier_trials
from slimfront.search.trials.prepared_study import prepare
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.store.records import TIMED
from slimfront.studies.store.store import Store


@pytest.fixture
def store(tmp_path: Path):
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as opened:
        yield opened


def added(store: Store, spec, fingerprint: str, policies: list[Policy], kl: float, batch: int = 1) -> None:
    """A study whose trials have each a divergence and a latency, timed with this batch."""
    store.create_study(spec, fingerprint, {}, {TIMED: {"batch": batch}})
    for number, policy in enumerate(policies):
        store.start_trial(spec.study, number, policy)
        values = {"kl": (kl, "nats"), "latency_ms": (2.0, "ms"), "accuracy_drop": (0.01, "fraction")}
        measured = [Measurement(name, value, value, value, unit) for name, (value, unit) in values.items()]
        store.add_measurements(spec.study, number, measured)
        store.finish_trial(spec.study, number, "complete", violations=())


def test_studies_of_the_same_workload_tell_damage_and_on_the_same_target_latency(tiny_spec, store: Store):
    prepared = prepare(tiny_spec())
    whole, int8, other = Policy(), prepared.space.anchors()[1], Policy(width=0.5)
    store.create_study(prepared.spec, "same", {}, {TIMED: {"batch": 1}})
    added(store, tiny_spec(study="before"), "same", [whole, int8, other], kl=0.25)
    added(store, tiny_spec(study="batches"), "same", [prepared.space.anchors()[3]], kl=0.5, batch=8)
    added(store, tiny_spec(study="elsewhere", target="cpu-onnxruntime"), "same", [prepared.space.anchors()[2]], kl=0.5)
    added(store, tiny_spec(study="foreign"), "another model", [prepared.space.anchors()[3]], kl=0.5)
    found = earlier_trials(store, prepared.spec, prepared.space)
    # A width is no point of this space; the drop is judged anew; the foreign model tells nothing.
    assert [prepared.space.policy(trial.choices) for trial in found] == [whole, int8, *prepared.space.anchors()[3:1:-1]]
    assert [trial.damage for trial in found] == [0.25, 0.25, 0.5, 0.5]
    assert [trial.values for trial in found] == [(None, 2.0), (None, 2.0), (None, None), (None, None)]


def test_a_trial_that_was_stopped_tells_its_latency_but_no_damage(tiny_spec, store: Store):
    prepared = prepare(tiny_spec())
    store.create_study(prepared.spec, "same", {}, {})
    added(store, tiny_spec(study="before"), "same", prepared.space.anchors()[:2], kl=0.25)
    store.start_trial("before", 2, prepared.space.anchors()[2])
    store.add_measurements(
        "before", 2, [Measurement("kl", 3.0, 3.0, 3.0, "nats"), Measurement("latency_ms", 2.0, 2.0, 2.0, "ms")]
    )
    store.finish_trial("before", 2, "pruned", "place 3 of 3, 1 go on", (), rung=0)
    found = earlier_trials(store, prepared.spec, prepared.space)
    assert [trial.damage for trial in found] == [0.25, 0.25, None]
    assert found[-1].values == (None, 2.0)
