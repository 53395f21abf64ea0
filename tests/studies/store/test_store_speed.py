"""The front of a study of 10,000 trials and the lists of one of 1,000, read in a moment."""

from __future__ import annotations

import time

import pytest
from rich.console import Console
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.analysis.front import Objective, Point, pareto_front
from slimfront.studies.reports.report import front_table, status_report, studies_table
from slimfront.studies.reports.status import study_summaries
from slimfront.studies.store import tables
from slimfront.studies.store.store import Store
from sqlalchemy import insert

TRIALS = 10_000
MEMBERS = range(0, TRIALS, 200)
POLICY = Policy(width=0.5, layers={f"blocks.{i}.conv": LayerPolicy(weight_bits=4) for i in range(20)})


def fill(store: Store, trials: int = TRIALS, policy: Policy = POLICY) -> None:
    """Complete trials in bulk, each measured on every metric."""
    with store._database.writing() as session:
        study_id = session.query(tables.Study.id).scalar()
        trial = {"study_id": study_id, "policy": policy.to_json(), "digest": policy.digest, "state": "complete"}
        session.execute(insert(tables.Trial), [{**trial, "number": number} for number in range(trials)])
        ids = session.query(tables.Trial.id).order_by(tables.Trial.number).all()
        rows = [
            {
                **Measurement.exact(name, (number * 7919 % TRIALS) + index, "made up").to_dict(),
                "study_id": study_id,
                "trial_id": trial_id,
                "rung": 0,
            }
            for number, (trial_id,) in enumerate(ids)
            for index, name in enumerate(METRICS)
        ]
        session.execute(insert(tables.MeasurementRow), rows)


def seconds(call) -> float:
    """The best of five: what the query costs without the neighbours."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.slow
def test_the_front_of_ten_thousand_trials_is_read_in_a_moment(store, make_spec, capsys):
    objectives = [Objective.of("latency_ms"), Objective.of("flops")]
    store.create_study(make_spec(), "f", {}, {})
    fill(store)
    store.save_front("demo", list(MEMBERS), 1.0)

    front = seconds(lambda: store.front_trials("demo"))
    snapshot = seconds(lambda: store.current_front("demo"))
    start = time.perf_counter()
    everything = store.trials("demo", "complete")
    read = time.perf_counter() - start
    anew = pareto_front([Point.of(trial, objectives) for trial in everything], objectives)
    with capsys.disabled():
        print(f"\n{store!r}: front {front * 1e3:.1f} ms, snapshot {snapshot * 1e3:.1f} ms, all {read:.2f} s")

    assert [trial.number for trial in store.front_trials("demo")] == list(MEMBERS)
    assert len(everything) == TRIALS
    assert [point.trial for point in anew] == [0]  # the made-up numbers rise together
    assert front < 0.5
    assert snapshot < 0.5


@pytest.mark.slow
def test_lists_of_a_thousand_trials_of_sixty_knobs_are_there_at_once(store, make_spec, capsys):
    layers = {f"blocks.{i}.conv": LayerPolicy(weight_bits=4, activation_bits=8, sparsity=0.5) for i in range(20)}
    store.create_study(make_spec(), "f", {}, {})
    store.set_baseline("demo", [Measurement.exact(name, 1.0, "made up") for name in METRICS], "here")
    fill(store, trials=1000, policy=Policy(layers=layers))
    for first in range(60):
        store.save_front("demo", list(range(first, first + 100)), 1.0 + first)
    console = Console(quiet=True)
    lists = {
        "studies": lambda: studies_table(study_summaries(store)),
        "status": lambda: status_report(store, "demo"),
        "front": lambda: front_table(store, "demo"),
    }
    took = {name: seconds(lambda call=call: console.print(call())) for name, call in lists.items()}
    with capsys.disabled():
        print(f"\n{store!r}: {', '.join(f'{name} {s:.2f} s' for name, s in took.items())}")
    assert max(took.values()) < 1.0
