"""The store's contract, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import dataclasses
import threading
from datetime import UTC, datetime, timedelta

import pytest
from slimfront.core.errors import StoreError
from slimfront.core.measurement import Measurement
from slimfront.core.texts import plain_text
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.store.records import Violation
from slimfront.studies.store.store import Store

POLICY = Policy(width=0.5, layers={"fc": LayerPolicy(weight_bits=4, sparsity="2:4")})
LATENCY = Measurement("latency_ms", 2.5, 2.25, 2.75, "ms", 40, "paired-median", noisy=True)
FLOPS = Measurement.exact("flops", 123456789012.0, "fvcore")
VIOLATION = Violation("flops", "flops < 3", -1.0)


@pytest.fixture
def demo(store, make_spec) -> Store:
    """A store with the study "demo" in it."""
    store.create_study(make_spec(), "f1", {"torch": "2.9"}, {"cores": 2})
    return store


def recent(moment: datetime) -> bool:
    return abs(datetime.now(UTC) - moment) < timedelta(minutes=1)


# Studies


def test_a_study_comes_back_as_it_was_made(demo, make_spec):
    study = demo.get_study("demo")
    assert study.spec == make_spec()
    assert (study.workload_fingerprint, study.versions, study.machine) == ("f1", {"torch": "2.9"}, {"cores": 2})
    assert study.baseline == {}
    assert recent(study.created)


def test_a_study_outlives_the_store_that_made_it(demo, url):
    with Store(url) as other:
        assert other.get_study("demo") == demo.get_study("demo")


def test_studies_are_listed_oldest_first(demo, make_spec):
    demo.create_study(make_spec(study="another"), "f2", {}, {})
    assert [study.name for study in demo.studies()] == ["demo", "another"]


def test_a_name_is_taken_once(demo, make_spec):
    with pytest.raises(StoreError, match="study 'demo' already exists"):
        demo.create_study(make_spec(), "f1", {}, {})


def test_an_unknown_study_suggests_the_nearest(demo):
    with pytest.raises(StoreError, match=r"^no study 'demmo' in .*; did you mean demo\?$"):
        demo.get_study("demmo")


def test_an_unknown_study_lists_the_known_when_none_is_near(demo):
    with pytest.raises(StoreError, match=r"no study 'zzz' in .*; known are demo$"):
        demo.trials("zzz")


def test_an_empty_database_has_no_study(store):
    assert store.studies() == []
    with pytest.raises(StoreError, match=r"no study 'demo' in .*; there are none yet$"):
        store.get_study("demo")


def test_budget_and_workers_may_be_updated(demo, make_spec):
    demo.update_spec(make_spec(workers=3, budget={"trials": 99}))
    assert demo.get_study("demo").spec == make_spec(workers=3, budget={"trials": 99})


def test_the_seed_may_not_be_updated(demo, make_spec):
    with pytest.raises(StoreError, match=r"study 'demo' has trials with another seed; go on with seed 0, or give"):
        demo.update_spec(make_spec(seed=9))
    assert demo.get_study("demo").spec.seed == 0


def test_the_space_may_not_be_updated(demo, make_spec):
    with pytest.raises(StoreError, match=r"study 'demo' has trials with another target, space\.weight_bits; give"):
        demo.update_spec(make_spec(target="gpu", space={"weight_bits": [8, 32]}))
    assert demo.get_study("demo").spec == make_spec()


def test_the_baseline_is_set_once(demo):
    demo.set_baseline("demo", [LATENCY, FLOPS], "cpu-openvino")
    assert demo.get_study("demo").baseline == {"latency_ms": LATENCY, "flops": FLOPS}
    with pytest.raises(StoreError, match="study 'demo' has its baseline already"):
        demo.set_baseline("demo", [FLOPS], "cpu-openvino")


# Trials


def test_a_trial_runs_and_completes(demo):
    demo.start_trial("demo", 0, POLICY, worker="w1")
    running = demo.get_trial("demo", 0)
    assert (running.state, running.worker, running.retry_of, running.finished) == ("running", "w1", None, None)
    assert (running.policy, running.digest) == (POLICY, POLICY.digest)
    assert recent(running.started)
    demo.finish_trial("demo", 0, "complete", violations=[VIOLATION])
    done = demo.get_trial("demo", 0)
    assert (done.state, done.reason, done.violations) == ("complete", None, (VIOLATION,))
    assert running.started <= done.finished
    assert dataclasses.replace(done, finished=done.started - timedelta(hours=1)).seconds == 0  # the clock was set back
    assert running.state == "running"  # what was handed out does not change


def test_a_trial_number_is_taken_once(demo):
    demo.start_trial("demo", 0, POLICY)
    with pytest.raises(StoreError, match="study 'demo' has a trial 0 already"):
        demo.start_trial("demo", 0, Policy())
    assert demo.get_trial("demo", 0).policy == POLICY


def test_two_studies_number_their_trials_apart(demo, make_spec):
    demo.create_study(make_spec(study="other"), "f2", {}, {})
    demo.start_trial("demo", 0, POLICY)
    demo.start_trial("other", 0, Policy())
    demo.add_measurements("other", 0, [FLOPS])
    assert demo.get_trial("demo", 0).measurements == {}
    assert demo.get_trial("other", 0).policy == Policy()


def test_an_unknown_trial_is_named(demo):
    with pytest.raises(StoreError, match="study 'demo' has no trial 3"):
        demo.get_trial("demo", 3)


def test_a_trial_ends_once(demo):
    demo.start_trial("demo", 0, POLICY)
    demo.finish_trial("demo", 0, "infeasible", reason="flops < 3 is violated")
    with pytest.raises(StoreError, match="trial 0 of study 'demo' has ended: infeasible"):
        demo.finish_trial("demo", 0, "complete")


@pytest.mark.parametrize("state", ["infeasible", "failed", "interrupted"])
def test_a_trial_that_ends_badly_needs_a_reason(demo, state):
    demo.start_trial("demo", 0, POLICY)
    with pytest.raises(ValueError, match="needs a reason"):
        demo.finish_trial("demo", 0, state)
    demo.finish_trial("demo", 0, state, reason="because")
    assert demo.get_trial("demo", 0).reason == "because"


def test_a_trial_does_not_end_running(demo):
    demo.start_trial("demo", 0, POLICY)
    with pytest.raises(ValueError, match="does not end as running"):
        demo.finish_trial("demo", 0, "running")


def test_a_rung_is_noted_of_pruned_trials_alone(demo):
    demo.start_trial("demo", 0, POLICY)
    for state, rung in (("pruned", None), ("failed", 1)):
        with pytest.raises(ValueError, match="a rung is noted of pruned trials"):
            demo.finish_trial("demo", 0, state, "because", rung=rung)
    demo.finish_trial("demo", 0, "pruned", "because", rung=1)
    assert (demo.get_trial("demo", 0).state, demo.get_trial("demo", 0).rung) == ("pruned", 1)


def test_trials_are_listed_by_number_and_state(demo):
    for number in (2, 0, 1, 10):
        demo.start_trial("demo", number, POLICY)
    demo.finish_trial("demo", 2, "failed", reason="x")
    demo.finish_trial("demo", 1, "complete")
    assert [trial.number for trial in demo.trials("demo")] == [0, 1, 2, 10]
    assert [trial.number for trial in demo.trials("demo", "failed")] == [2]
    assert [trial.number for trial in demo.trials("demo", "infeasible")] == []


def test_orphans_are_found_failed_and_retried(demo, url):
    demo.start_trial("demo", 0, POLICY)
    with Store(url) as resumed:
        orphans = resumed.running_trials("demo")
        assert [trial.number for trial in orphans] == [0]
        resumed.finish_trial("demo", 0, "failed", reason="its driver ended")
        resumed.start_trial("demo", 1, orphans[0].policy, retry_of=0)
    assert demo.get_trial("demo", 1).retry_of == 0
    assert [trial.number for trial in demo.running_trials("demo")] == [1]


# Measurements


def test_a_measurement_comes_back_whole(demo):
    demo.start_trial("demo", 0, POLICY)
    demo.add_measurements("demo", 0, [FLOPS])
    demo.add_measurements("demo", 0, [LATENCY], target="cpu-openvino")
    assert demo.get_trial("demo", 0).measurements == {"flops": FLOPS, "latency_ms": LATENCY}


def test_the_newest_measurement_counts_and_the_older_stay(demo):
    again = dataclasses.replace(LATENCY, value=2.4)
    demo.start_trial("demo", 0, POLICY)
    demo.add_measurements("demo", 0, [LATENCY], rung=0, target="cpu-openvino")
    demo.add_measurements("demo", 0, [again], rung=1, target="cpu-openvino")
    assert demo.get_trial("demo", 0).measurements == {"latency_ms": again}
    history = demo.measurement_history("demo", 0)
    assert [(row.measurement, row.rung, row.target) for row in history] == [
        (LATENCY, 0, "cpu-openvino"),
        (again, 1, "cpu-openvino"),
    ]
    assert all(row.trial == 0 and recent(row.made_at) for row in history)


def test_the_baseline_has_its_history_apart_from_the_trials(demo):
    demo.set_baseline("demo", [FLOPS], "cpu-openvino")
    demo.start_trial("demo", 0, POLICY)
    demo.add_measurements("demo", 0, [LATENCY])
    (row,) = demo.measurement_history("demo")
    assert (row.trial, row.measurement, row.target) == (None, FLOPS, "cpu-openvino")


@pytest.mark.parametrize("field", ["value", "low", "high"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_and_nothing_written(demo, field, number):
    demo.start_trial("demo", 0, POLICY)
    with pytest.raises(ValueError, match="latency_ms is not finite"):
        demo.add_measurements("demo", 0, [FLOPS, dataclasses.replace(LATENCY, **{field: number})])
    assert demo.measurement_history("demo", 0) == []


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e300, 5e-324, -0.0, 2.0**53])
def test_numbers_are_stored_to_the_last_bit(demo, value):
    demo.start_trial("demo", 0, POLICY)
    demo.add_measurements("demo", 0, [Measurement.exact("flops", value, "fvcore")])
    assert demo.get_trial("demo", 0).measurements["flops"].value == value


# Artifacts


def test_an_artifact_comes_back_and_is_replaced_at_its_path(demo):
    demo.start_trial("demo", 0, POLICY)
    demo.record_artifact("demo", 0, "openvino", "a/model.xml", "0" * 64, 5_000_000_000)
    demo.record_artifact("demo", 0, "openvino", "a/model.bin", "1" * 64, 10)
    demo.record_artifact("demo", 0, "openvino", "a/model.xml", "2" * 64, 20)
    files = [(file.kind, file.path, file.sha256, file.bytes) for file in demo.artifacts("demo", 0)]
    assert files == [("openvino", "a/model.xml", "2" * 64, 20), ("openvino", "a/model.bin", "1" * 64, 10)]
    assert recent(demo.artifacts("demo", 0)[0].made_at)


# Fronts


def test_a_front_is_written_only_when_its_members_change(demo):
    for number in range(4):
        demo.start_trial("demo", number, POLICY)
    for number in range(3):
        demo.finish_trial("demo", number, "complete")
    assert demo.current_front("demo") is None
    assert demo.save_front("demo", [2, 0], 1.5)
    assert not demo.save_front("demo", [0, 2, 0], 1.5)
    first = demo.current_front("demo")
    assert (first.members, first.hypervolume, first.trials) == ((0, 2), 1.5, 3)
    assert recent(first.made_at)
    assert demo.save_front("demo", [1, 2], 2.5)
    assert [front.members for front in demo.fronts("demo")] == [(0, 2), (1, 2)]
    assert demo.fronts("demo")[-1] == demo.current_front("demo")


def test_a_front_may_become_empty(demo):
    demo.start_trial("demo", 0, POLICY)
    assert demo.save_front("demo", [0], 1.0)
    assert demo.save_front("demo", [], 0.0)
    assert demo.current_front("demo").members == ()
    assert demo.front_trials("demo") == []


def test_the_front_s_trials_come_with_their_measurements(demo):
    for number in range(3):
        demo.start_trial("demo", number, POLICY)
        demo.add_measurements("demo", number, [Measurement.exact("flops", number, "fvcore")])
    assert demo.front_trials("demo") == []
    demo.save_front("demo", [1], 1.0)
    demo.save_front("demo", [0, 2], 1.0)
    assert demo.front_trials("demo") == [demo.get_trial("demo", 0), demo.get_trial("demo", 2)]
    assert demo.front_trials("demo")[1].measurements["flops"].value == 2.0


def test_a_front_of_trials_that_are_not_there_is_refused(demo):
    demo.start_trial("demo", 0, POLICY)
    with pytest.raises(StoreError, match="study 'demo' has no trial 5"):
        demo.save_front("demo", [0, 5, 6], 1.0)
    assert demo.fronts("demo") == []


# Targets


def test_a_target_comes_back_and_is_replaced(store):
    store.save_target("cpu", {"threads": 1, "latency": [1.5, None]}, {"cpu": "x"})
    store.save_target("arm", {}, {})
    store.save_target("cpu", {"threads": 2}, {"cpu": "y"})
    target = {target.name: target for target in store.targets()}["cpu"]
    assert (target.name, target.card, target.fingerprint) == ("cpu", {"threads": 2}, {"cpu": "y"})
    assert recent(target.measured_at)
    assert [target.name for target in store.targets()] == ["arm", "cpu"]


# Sharing


def test_threads_may_write_at_once(demo):
    def work(first: int) -> None:
        for number in range(first, first + 10):
            demo.start_trial("demo", number, POLICY)
            demo.add_measurements("demo", number, [FLOPS])
            demo.finish_trial("demo", number, "complete")

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = demo.trials("demo", "complete")
    assert [trial.number for trial in trials] == list(range(30))
    assert all(trial.measurements == {"flops": FLOPS} for trial in trials)


def test_two_may_open_a_new_database_at_once(url):
    problems = []

    def open_it() -> None:
        try:
            Store(url).close()
        except StoreError as error:
            problems.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    with Store(url) as store:
        assert store.studies() == []


# Texts that anyone may have written


@pytest.mark.parametrize("text", ["\0", "\ud800 half a pair", "\x1b[31mred", "[/red] [bold]", "x" * 100_000, "a\nb\tc"])
def test_any_text_is_stored_escaped_and_cut(demo, text):
    demo.start_trial("demo", 1, Policy(), worker=text)
    demo.add_measurements("demo", 1, [dataclasses.replace(Measurement.exact("flops", 1.0, "counted"), method=text)])
    demo.finish_trial("demo", 1, "failed", text)
    demo.set_remark("demo", text)
    trial = demo.get_trial("demo", 1)
    stored = {trial.reason, trial.worker, trial.measurements["flops"].method, demo.get_study("demo").remark}
    assert stored == {plain_text(text)}
    assert len(trial.reason) <= 2000
