"""A study whose accuracy is no fraction: in the metric's own unit and direction from the database to the screen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console
from slimfront.core.errors import StoreError, StudyFileError
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import FRACTION, Quality
from slimfront.search.sampler.study_terms import worst_corner
from slimfront.search.study_setup import _refuse_other_metric
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.analysis.front import Objective, reference_point
from slimfront.studies.analysis.newest_front import front_points, objectives_of
from slimfront.studies.analysis.selection import pick
from slimfront.studies.inspection.study_checks import check_direction
from slimfront.studies.reports.json_documents import study_front_document
from slimfront.studies.reports.notes import study_note
from slimfront.studies.reports.report import front_table, status_report
from slimfront.studies.study_file.constraint import Constraint
from slimfront.workloads.workload import Workload
from torch import nn

MSE = Quality("mse", "squared units", higher_is_better=False, margin=2.5, outputs="values")


def figures(mse: float, latency: float) -> list[Measurement]:
    unit, drop = MSE.unit, mse - 5.0
    return [
        Measurement("accuracy", mse, mse - 0.1, mse + 0.1, unit, 100, "bootstrap over samples"),
        Measurement("accuracy_drop", drop, drop - 0.1, drop + 0.1, unit, 100, "paired-bootstrap over samples"),
        Measurement("latency_ms", latency, latency, latency, "ms"),
        Measurement("speedup", 2 / latency, 2 / latency, 2 / latency, "ratio"),
        Measurement.exact("artifact_bytes", 1000, "file"),
    ]


@pytest.fixture
def study(store, make_spec):
    """The store with a study of three trials: the first is most accurate, the second fastest, the third worthless."""
    store.create_study(make_spec(), "fingerprint", {}, {})
    store.set_baseline("demo", figures(5.0, 2.0), "cpu-openvino", quality=MSE)
    for number, (mse, latency) in enumerate([(5.0, 1.9), (6.0, 1.0), (50.0, 0.5)]):
        store.start_trial("demo", number, Policy(width=1 - number / 4))
        store.add_measurements("demo", number, figures(mse, latency), 0, "cpu-openvino")
        store.finish_trial("demo", number, "complete", None)
    store.save_front("demo", [0, 1, 2], hypervolume=1.0)
    return store


def test_the_database_keeps_what_the_accuracy_is(study):
    record = study.get_study("demo")
    assert record.quality == MSE
    assert [(o.unit, o.margin) for o in objectives_of(record)] == [("squared units", 2.5), ("ms", None)]
    points, objectives = front_points(study, record), objectives_of(record)
    assert pick(points, objectives, "most-accurate").trial == 0
    document = study_front_document(study, "demo")
    assert document["metric"]["metric"] == "mse"
    assert document["objectives"][0] == {"name": "accuracy_drop", "unit": "squared units", "direction": "minimize"}


def test_every_report_says_what_the_accuracy_is(study):
    record = study.get_study("demo")
    note = study_note(record, study.trials("demo"), study.current_front("demo"), front_points(study, record))
    console = Console(record=True, width=140)
    console.print(front_table(study, "demo"), status_report(study, "demo"))
    for text in (note, console.export_text()):
        assert "ccuracy is mse (squared units, lower is better); accuracy_drop is how much of it is lost" in text
    assert "accuracy_drop [squared units, less is better]" in note


def test_improvement_is_counted_from_the_metrics_own_margin():
    objectives = [Objective.of("accuracy_drop", MSE), Objective.of("latency_ms", MSE)]
    baseline = {"accuracy": 5.0, "accuracy_drop": 0.0, "latency_ms": 2.0}
    assert reference_point(baseline, objectives) == pytest.approx((2.5, 2.2))
    bound = Constraint.parse("accuracy_drop <= 1", frozenset(["accuracy_drop"]))
    assert reference_point(baseline, objectives, [bound]) == pytest.approx((1, 2.2))
    assert worst_corner(baseline, ["accuracy_drop", "latency_ms"], [], MSE) == pytest.approx([2.5, 2.2])
    assert Objective.of("accuracy", MSE).direction == "minimize"
    assert Objective.of("accuracy").direction == "maximize"


def test_accuracy_of_which_less_is_better_is_no_objective(make_spec):
    spec = make_spec(objectives=["latency_ms", "accuracy"])
    model = nn.Linear(2, 1)
    check_direction(spec, Workload(model, [], [], [], [], None, "r2"))
    with pytest.raises(StudyFileError, match=r"objectives.1.*accuracy_drop is how much of it is lost"):
        check_direction(spec, Workload(model, [], [], [], [], None, "mse"))


def test_a_study_goes_on_with_its_metric(study):
    record = study.get_study("demo")
    _refuse_other_metric(record, MSE)
    with pytest.raises(StoreError, match=r"has accuracies in mse \(squared units, .* now has r2 \(fraction"):
        _refuse_other_metric(record, Quality("r2"))
    _refuse_other_metric(replace(record, quality=FRACTION), Quality("top1"))
