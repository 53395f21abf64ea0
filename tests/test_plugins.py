"""An installed package adds a criterion, a distiller, an evaluator, a kind of knob and a runtime, and a study searches them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from slimfront.studies.store.store import Store

PLUGIN = Path(__file__).parent / "plugin"
TINY = Path(__file__).parent / "search" / "tiny_workload.py"
CARD = {"name": "plain-cpu", "runtime": "plain", "weight_bits": [8, 32], "activation_bits": [8, 32]}
STUDY = {
    "study": "plugged",
    "workload": f"{TINY}:workload",
    "target": "plain.yaml",
    "objectives": ["accuracy_drop", "packed_bytes", "zero_weights"],
    "budget": {"trials": 5},
    "sampler": "random",
    "sensitivity": False,
    "space": {
        "weight_bits": [8, 32],
        "channel_sparsity": [0, 0.5],
        "criterion": ["largest"],
        "shrinkage": [0.0, 0.1],
        "recovery_epochs": [1],
    },
    "recovery": {"distiller": "agreement"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(CARD))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def run(folder: Path, *command: str, installed: bool = True) -> subprocess.CompletedProcess[str]:
    """A command of slimfront where the package is installed: its folder and metadata are on the path, as in site-packages."""
    path = os.pathsep.join([*([str(PLUGIN)] if installed else []), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )  # fmt: skip


@pytest.mark.slow
def test_a_study_searches_one_of_each(folder: Path) -> None:
    """By a worker of Ray's, and goes on by one of slimfront's own."""
    for workers, trials in (("1", "3"), ("0", "5")):
        arguments = ("--workers", workers, "--trials", trials, "--format", "json")
        found = run(folder, "-m", "slimfront", "search", "study.yaml", *arguments)
        assert found.returncode == 0, found.stderr
    points = json.loads(found.stdout)["points"]
    assert any(point["values"]["zero_weights"] > 0.05 for point in points)
    with Store(f"sqlite:///{folder / 'slimfront.db'}", create=False) as store:
        trials = store.trials("plugged")
        assert {trial.state for trial in trials} == {"complete"}, [trial.reason for trial in trials]
        pruned = [trial for trial in trials if trial.policy.channels]
        assert {trial.policy.pruning.criterion for trial in pruned} == {"largest"}
        assert {trial.policy.recovery.distiller for trial in trials if trial.policy.recovery.epochs} == {"agreement"}
        assert any(trial.policy.extensions.get("shrinkage") for trial in trials)
    exported = run(folder, "-m", "slimfront", "export", "plugged", "--to", "bundle")
    assert exported.returncode == 0, exported.stderr
    assert "load_plain" in (folder / "bundle" / "card.md").read_text()
    ran = run(folder, "bundle/run.py", installed=False)  # a bundle needs neither slimfront nor the package
    assert ran.returncode == 0, ran.stderr
    assert "speedup" in ran.stdout


def test_what_a_package_adds_is_unknown_where_it_is_not_installed(folder: Path) -> None:
    refused = run(folder, "-m", "slimfront", "search", "study.yaml", "--workers", "0", installed=False)
    assert refused.returncode == 2
    assert "space.shrinkage: unknown key; known are" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_broken_package_refuses_the_study_that_names_it_in_one_line(folder: Path) -> None:
    space = {"criterion": ["l2", "broken"], "channel_sparsity": [0, 0.5]}
    (folder / "study.yaml").write_text(
        yaml.safe_dump({**STUDY, "target": "cpu-openvino", "objectives": ["flops", "packed_bytes"], "space": space})
    )
    refused = run(folder, "-m", "slimfront", "search", "study.yaml", "--workers", "0")
    assert refused.returncode == 2
    problem = "criterion 'broken' of package slimfront-plugin 1.0 cannot be imported: ModuleNotFoundError"
    assert f"space.criterion.1: {problem}" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_no_package_is_imported_for_the_help(folder: Path) -> None:
    code = "import sys; from slimfront.cli import main\ntry: main()\nexcept SystemExit: pass\nprint('slimfront_plugin' in sys.modules)"
    assert run(folder, "-c", code).stdout.splitlines()[-1] == "False"
