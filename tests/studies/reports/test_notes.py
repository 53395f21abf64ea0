"""Notes in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.studies.analysis.front import Objective, Point
from slimfront.studies.reports.notes import MOST_ROWS, study_note, trial_note
from slimfront.studies.store.records import FrontRecord, StudyRecord, TrialRecord
from slimfront.studies.store.trial_state import TrialState
from slimfront.studies.study_file.spec import StudySpec

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def measured(**values: float) -> dict[str, Measurement]:
    return {name: Measurement(name, v, v - 0.01, v + 0.01, METRICS[name].unit) for name, v in values.items()}


def trial(number: int, state: str = "complete", reason: str | None = None, policy: Policy = Policy(), **values: float):
    return TrialRecord(
        study="demo", number=number, policy_json=policy.to_json(), digest=policy.digest, state=TrialState(state), reason=reason,
        worker=None, retry_of=None, rung=None, driver_died=False, started=NOW, finished=NOW, violations=(),
        measurements=measured(**values),
    )  # fmt: skip


@pytest.fixture
def study(make_spec: Callable[..., StudySpec]) -> StudyRecord:
    spec = make_spec(constraints=["accuracy_drop <= 0.05"])
    baseline = measured(accuracy_drop=0.0, latency_ms=9.0, accuracy=0.99)
    return StudyRecord("demo", spec, "", {}, {}, NOW, baseline)


def note(study: StudyRecord, trials: list[TrialRecord], members: list[int]) -> str:
    objectives = [Objective.of(name) for name in study.spec.objectives]
    points = [Point.of(t, objectives) for t in trials if t.number in members]
    return study_note(
        study, trials, FrontRecord(members=tuple(members), hypervolume=0.25, trials=len(trials), made_at=NOW), points
    )


def cells(page: str, label: str) -> list[str]:
    """The cells of the table row that begins with `label`."""
    row = next(line for line in page.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_study_names_its_winner_and_the_command(study):
    trials = [
        trial(0, accuracy_drop=0.0, latency_ms=6.0, accuracy=0.99),
        trial(1, accuracy_drop=0.01, latency_ms=3.0, accuracy=0.98),
        trial(2, accuracy_drop=0.04, latency_ms=2.0, accuracy=0.95),
        trial(3, "infeasible", "violates", accuracy_drop=0.9, latency_ms=1.0),
    ]
    page = note(study, trials, [0, 1, 2])

    assert "```\nslimfront export demo --trial 1 --to DIR\n```" in page
    assert "Trial **1**, the knee of the front: accuracy_drop 0.0100, latency_ms 3.000 ms, accuracy 0.9800." in page
    assert "- Workload `digits` on target `cpu-openvino`" in page
    assert "accuracy_drop [fraction, less is better], latency_ms [ms, less is better]" in page
    assert "- Constraints: `accuracy_drop <= 0.05`" in page
    assert "- Trials: 3 complete, 1 infeasible" in page
    assert "- Front: 3 points, hypervolume 0.25" in page
    assert cells(page, "trial") == ["trial", "accuracy_drop [fraction]", "latency_ms [ms]", "accuracy [fraction]"]
    assert cells(page, "uncompressed") == ["uncompressed", "0.0000", "9.000", "0.9900"]
    assert cells(page, "**1** (knee)") == ["**1** (knee)", "0.0100 ±0.0100", "3.000 ±0.01", "0.9800"]


def test_a_study_of_predicted_figures_names_them(study):
    predicted = Measurement("latency_ms", 9, 8, 10, "ms", 80, "predicted by a latency table, median error 3.0%")
    elsewhere = replace(study, baseline={**study.baseline, "latency_ms": predicted})
    line = "- Predicted: latency_ms. They were predicted by a latency table, median error 3.0%, not measured on the target."
    assert line in study_note(elsewhere, [], None, []).splitlines()
    assert "redicted" not in study_note(study, [], None, [])


def test_a_study_without_a_front_says_why(study):
    trials = [trial(0, "failed", "broke"), trial(1, "running")]
    page = study_note(study, trials, None, [])

    assert "No front yet: no trial of 1 met every constraint (1 failed)." in page
    assert "export" not in page


def test_a_long_front_is_cut(study):
    trials = [trial(i, accuracy_drop=i / 1000, latency_ms=100.0 - i) for i in range(MOST_ROWS + 5)]
    page = note(study, trials, list(range(MOST_ROWS + 5)))

    assert "5 more points: `slimfront front demo`" in page
    assert page.count("\n| ") - 2 <= MOST_ROWS + 1


def test_a_trial_lists_its_policy_and_measurements():
    policy = Policy(
        channels={"stem": 0.5},
        layers={"fc|odd": LayerPolicy(4, 8, "2:4")},
        recovery=Recovery(2),
        width=0.5,
    )
    page = trial_note(trial(7, "infeasible", "violates it", policy, accuracy=0.5, latency_ms=2.0))

    assert page.startswith("# Trial 7\n\ninfeasible: violates it. ")
    assert f"`{policy.digest}`" in page
    assert "2 epochs" in page
    assert cells(page, "`fc/odd`") == ["`fc/odd`", "4", "8", "2:4"]  # a bar would end the cell
    assert cells(page, "`stem`") == ["`stem`", "0.5", "0.25"]
    assert cells(page, "accuracy") == ["accuracy", "0.5000", "0.4900 to 0.5100", "fraction", "1", "exact"]


def test_an_uncompressed_trial_says_so():
    assert "No layer and no channel group is changed on its own." in trial_note(trial(0, accuracy=1.0))
