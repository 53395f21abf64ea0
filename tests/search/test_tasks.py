"""Regression and segmentation from a study file to a verified bundle: metric, unit and damage as those of a classifier."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import slimfront

TASKS = Path(__file__).with_name("tasks_workload.py")
CASES = {
    "r2": ("regression", "fraction", "values", 1),
    "mse": ("regression", "squared units", "values", -1),
    "miou": ("segmentation", "fraction", "logits of classes along axis 1", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "target"), [("r2", "cpu-openvino"), ("mse", "cpu-onnxruntime"), ("miou", "cpu-openvino")]
)
def test_a_task_is_searched_exported_and_verified(
    metric: str, target: str, study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task, unit, outputs, sign = CASES[metric]
    changes = {"workload": f"{TASKS}:{task}", "workload_options": {"metric": metric}, "target": target}
    study = slimfront.search(study_file(**changes, budget={"trials": 4}), progress=False)
    status = study.status()
    assert (status.metric["metric"], status.metric["unit"], status.metric["outputs"]) == (metric, unit, outputs)
    baseline = study.store.get_study(study.name).baseline["accuracy"]
    damage = "kl" if metric == "miou" else "damage"
    trials = study.store.trials(study.name)
    for trial in trials:
        measured = trial.measurements
        drop = measured["accuracy_drop"]
        assert drop.unit == measured["accuracy"].unit == unit
        assert drop.value == pytest.approx(sign * (baseline.value - measured["accuracy"].value))
        assert (drop.value > 0.01 * abs(baseline.value)) <= (measured[damage].value > 1e-6)
        assert "paired-bootstrap over" in drop.method
    worst = max(trials, key=lambda trial: trial.measurements[damage].value)
    assert worst.measurements["accuracy_drop"].low > 0  # half of the channels, without recovery
    bundle = study.export("bundle", pick="fastest")
    card = json.loads((bundle.folder / "card.json").read_text())
    assert card["metric"]["metric"] == metric
    checks = {check.claim: check for check in study.verify(bundle).checks}
    assert checks["accuracy"].holds
