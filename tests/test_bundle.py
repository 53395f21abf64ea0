"""An exported bundle, in a process that knows only numpy and the runtime, does what its card says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from slimfront.core.errors import UserError
from slimfront.hardware_profiles.bench.bench import bench_cores
from slimfront.search.cluster.timers import timer_of
from slimfront.search.run import run_search
from slimfront.studies.bundles.bundle import open_bundle
from slimfront.studies.bundles.export import export_bundle
from slimfront.studies.bundles.judge import judge_of_study
from slimfront.studies.bundles.verify import verify_bundle
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.load import load_study
from slimfront.workloads.workload import Workload

SCORE = """
import sys
import numpy as np
import openvino
data = np.load(sys.argv[2])
model = openvino.compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
answers = [model({0: image[None]})[0].argmax() for image in data["inputs"]]
assert "slimfront" not in sys.modules and "torch" not in sys.modules
print((np.array(answers) == data["targets"]).mean())
"""
ATTEMPTS = 5
"""Pairs of timings, of which a machine that is busy for a second may spoil some."""

ANOTHER_MOOD = 1.3
"""Factor between speed-ups of one artifact at two times on one shared machine: neighbours take caches from the larger
reference first. Measured: 7.0 alone, 8.4 with a neighbour at the same memory. Wrong settings cost a factor of two and more."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory):
    """A digits study of three trials, searched and confirmed."""
    folder = tmp_path_factory.mktemp("bundle")
    url = f"sqlite:///{folder / 'study.db'}"
    run_search(load_study("digits-demo").replaced(trials=3, workers=0), url, folder / "artifacts", Console(quiet=True))
    with Store(url) as store:
        yield store


def isolated(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-I", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.serial
def test_every_front_point_reproduces_its_card(searched: Store, digits_workload: Workload, tmp_path: Path) -> None:
    inputs, targets = zip(*digits_workload.validation, strict=True)
    np.savez(tmp_path / "validation.npz", inputs=np.stack(inputs), targets=np.array(targets))
    members = searched.current_front("digits-demo").members
    assert members
    for trial in members:
        bundle = tmp_path / str(trial)
        export_bundle(searched, "digits-demo", bundle, trial=trial, rule="knee")
        card = json.loads((bundle / "card.json").read_text())["measurements"]
        accuracy = float(isolated("-c", SCORE, bundle / "model.onnx", tmp_path / "validation.npz", cwd=tmp_path))
        assert accuracy == pytest.approx(card["accuracy"]["value"], abs=0.005)
        moments: list[tuple[float, float]] = []
        while not moments or (len(moments) < ATTEMPTS and not agree(*moments[-1])):
            moments.append((speedup(bundle), bench_speedup(bundle)))
        assert agree(*moments[-1]), moments
        recorded = card["speedup"]["value"]
        assert 1 / ANOTHER_MOOD < moments[-1][0] / recorded < ANOTHER_MOOD, (moments, recorded)


@pytest.mark.slow
@pytest.mark.serial  # with the study that the test before it needs the machine for
def test_verify_finds_what_was_changed(searched: Store, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(searched, "digits-demo", bundle, trial=None, rule="knee")
    judge = judge_of_study(searched, "digits-demo", open_bundle(bundle))
    held = {check.claim: check.holds for check in verify_bundle(bundle, timer_of, judge)}
    assert {claim for claim, holds in held.items() if not holds} <= {"speedup"}  # which a busy second may spoil
    assert list(held) == [
        "files, by sha256", "artifact_bytes", "packed_bytes", "packed weights, by digest", "workload", "accuracy", "speedup",
    ]  # fmt: skip
    (bundle / "model.onnx").write_bytes((bundle / "reference.onnx").read_bytes())
    broken = {check.claim: check.found for check in verify_bundle(bundle, timer_of) if check.holds is False}
    assert broken["files, by sha256"] == "model.onnx changed"
    assert {"artifact_bytes", "speedup"} <= set(broken)
    with pytest.raises(UserError, match=r"has no card\.json"):
        list(verify_bundle(tmp_path, timer_of))


def agree(speedup: float, other: float) -> bool:
    return abs(speedup / other - 1) <= 0.1


def speedup(bundle: Path) -> float:
    """What the bundle's own script measures."""
    line = next(line for line in isolated(bundle / "run.py", cwd=bundle).splitlines() if line.startswith("speedup"))
    return float(line.split()[1])


def bench_speedup(folder: Path) -> float:
    """What the bench, whose figure the card has, measures at the same moment."""
    bundle = open_bundle(folder)
    target, example = bundle.card.target, torch.zeros(1, *bundle.card.input.shape[1:])
    reference, model = (bundle.artifact(name).path for name in ("reference", "model"))
    with timer_of(target, reference, example, bench_cores(target.threads)) as timer:
        return timer.time(model).speedup
