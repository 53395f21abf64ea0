"""A bundle from a stranger: what it names is not run, what lies outside its folder is not read, what is malformed is one line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from slimfront.cli import main
from slimfront.compression.packing.packed_file import load_packed
from slimfront.core.errors import StoreError, TargetError, UserError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.bundles.bundle import InputInfo, open_bundle
from slimfront.studies.bundles.judge import judge_of_study, judge_of_workload
from slimfront.studies.bundles.verify import Check, verify_bundle
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

ROOT = Path(__file__).parents[3]
PAYLOAD = "open({!r}, 'w').close()"
WORKLOAD = """
import torch
from slimfront import Workload
from torch import nn
from torch.utils.data import TensorDataset

def split(count, seed, size):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 2)

def workload(size=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return Workload(model, *(split(20 * (i + 1), i, size) for i in range(4)), torch.zeros(1, 3, size, size))
"""


@pytest.fixture(scope="module")
def inputs() -> ModuleType:
    """The module that makes bundles and spoils them."""
    spec = importlib.util.spec_from_file_location("generated_inputs", ROOT / "benchmarks" / "generated_inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(inputs: ModuleType, tmp_path: Path) -> Path:
    inputs.write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def torch_bundle(inputs: ModuleType, bundle: Path) -> Path:
    """Of a target whose files may hold code; these hold a pickle that nobody may load."""
    for stem in ("model", "reference"):
        (bundle / f"{stem}.onnx").rename(bundle / f"{stem}.pt2")
    card = card_of(bundle)
    card["target"]["runtime"], card["files"] = "torch", {"model.pt2": {}, "reference.pt2": {}}
    write_card(bundle, inputs.listing(card, bundle))
    return bundle


def card_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "card.json").read_text())


def write_card(bundle: Path, card: object) -> None:
    (bundle / "card.json").write_text(json.dumps(card))


def untimed(*_: object) -> Any:
    raise TargetError("nothing is timed here")


def verified(bundle: Path, **options: Any) -> dict[str, Check]:
    return {check.claim: check for check in verify_bundle(bundle, untimed, **options)}


def test_a_bundle_is_checked_without_what_it_names(bundle: Path) -> None:
    found = {claim: check.holds for claim, check in verified(bundle).items()}
    assert found == {
        "files, by sha256": True, "artifact_bytes": True, "packed_bytes": True, "packed weights, by digest": True,
        "accuracy": None, "speedup": None,
    }  # fmt: skip
    assert verified(bundle)["accuracy"].found.startswith("not scored: a workload or a study")


@pytest.mark.parametrize(
    ("workload", "options"),
    [("os:system", {"command": "touch it-ran"}), ("subprocess:call", {"popenargs": ["touch", "it-ran"]}), ("{}.py:workload", {})],
)  # fmt: skip
def test_the_workload_of_a_card_is_not_run(
    bundle: Path, tmp_path: Path, workload: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "it-ran"
    Path(f"{mark}.py").write_text(PAYLOAD.format(str(mark)))
    card = card_of(bundle)
    named = {"workload": workload.format(mark), "workload_options": options}
    write_card(bundle, {**card, "provenance": {**card["provenance"], **named}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["slimfront", "verify", str(bundle)])
    monkeypatch.setattr("slimfront.search.cluster.timers.timer_of", untimed)
    main()  # it exits with an error where there is one
    assert not mark.exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "sub/file", "..", ".hidden", "", "a\nb", "x" * 5000])
def test_a_file_elsewhere_is_refused(bundle: Path, name: str) -> None:
    card = card_of(bundle)
    write_card(bundle, {**card, "files": {**card["files"], name: {"sha256": "0" * 64, "bytes": 1}}})
    with pytest.raises(UserError, match=r"card\.json: files: .* is not a plain name of a file in the bundle$"):
        verified(bundle)


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("name", ["card.json", "model.onnx", "packed.safetensors"])
@pytest.mark.parametrize(
    ("put", "says"),
    [(a_link, "is a link; a file itself has to be there"), (os.mkfifo, "is not a regular file"), (Path.mkdir, "is not a regular file")],
)  # fmt: skip
def test_what_is_no_file_is_refused_and_never_opened(bundle: Path, name: str, put: Callable, says: str) -> None:
    (bundle / name).unlink()
    put(bundle / name)
    with pytest.raises(UserError, match=rf"{name}: {says}$"):
        verified(bundle)


def test_missing_and_changed_files_are_named(bundle: Path) -> None:
    (bundle / "policy.json").unlink()
    (bundle / "packed.safetensors").write_bytes((bundle / "packed.safetensors").read_bytes()[:-1])
    found = verified(bundle)
    assert found["files, by sha256"].found == "packed.safetensors, policy.json changed"
    assert not found["packed weights, by digest"].holds
    assert found["packed weights, by digest"].found.startswith(
        "packed.safetensors is not a packed file: SafetensorError"
    )
    (bundle / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"bundle has no model file; export the bundle again"):
        verified(bundle)


TEXT = {"name": "input", "shape": [1, 8], "axes": {"1": "sequence"}}
LONG = {**load_target("cpu-openvino").model_dump(mode="json"), "shapes": [{"sequence": 10**9}]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": None}, "schema: must be a whole number, not None"),
        ({"schema": 9}, "has schema 9, this slimfront knows 1; a newer slimfront reads it"),
        ({"measurements": {}}, "measurements.accuracy: is missing"),
        ({"measurements": []}, "measurements: must be a mapping of keys, not []"),
        ({"target": None}, "target: must be a mapping of keys, not None"),
        ({"input": {"name": "input", "shape": [1, 2**20, 2**20]}}, "inputs: one batch would take more than"),
        (
            {"input": {"name": "input", "shape": [1, 600]}, "target": {**LONG, "shapes": None, "batch": 10**6}},
            "inputs: one batch would take more than",
        ),
        ({"input": TEXT, "target": LONG}, "inputs: one batch at sequence=1000000000 would take more than"),
        (
            {"input": {**TEXT, "axes": {"2": "sequence"}}},
            "input: axes names axis 2, which a shape of 2 sizes does not have",
        ),
        ({"files": {"model.onnx": {"sha256": 3, "bytes": 1}}}, "files.model.onnx.sha256: must be text, not 3"),
        ({"trial": "x" * 10**6}, "trial: must be a whole number, not 'xxxx"),
    ],
)
def test_a_malformed_card_is_one_line_naming_the_key(bundle: Path, change: dict, says: str) -> None:
    write_card(bundle, {**card_of(bundle), **({"inputs": []} if "input" in change else {}), **change})
    with pytest.raises(UserError, match=re.escape(f"bundle/card.json: {says}")) as error:
        verified(bundle)
    assert len(str(error.value)) < 500


def test_a_batch_takes_as_many_bytes_as_its_type() -> None:
    images = InputInfo(shape=[1, 3, 224, 224])
    assert images.bytes_of(2000, {}) == 4 * 2000 * 3 * 224 * 224  # fits, and would not at eight bytes a number
    assert images.model_copy(update={"shape": [4, 3, 224, 224]}).bytes_of(1, {}) == 4 * 4 * 3 * 224 * 224
    text = InputInfo(shape=[1, 8], dtype="int64", axes={"1": "sequence"})
    assert text.bytes_of(2, {"sequence": 100}) == 8 * 2 * 100
    assert text.model_copy(update={"dtype": "bool"}).bytes_of(2, {}) == 16


def test_a_model_that_reads_other_files_is_refused(bundle: Path, inputs: ModuleType) -> None:
    model = onnx.load(bundle / "model.onnx")
    onnx.save_model(model, bundle / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    write_card(bundle, inputs.listing(card_of(bundle), bundle))
    with pytest.raises(UserError, match=r"model\.onnx reads weights from other files, and is to hold its own$"):
        verified(bundle)
    (bundle / "model.onnx").write_text("<net name='ir' version='11'/>")
    with pytest.raises(UserError, match=r"model\.onnx is not an ONNX file"):
        verified(bundle)


class Pickled:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return exec, (PAYLOAD.format(str(self.mark)),)


def test_files_that_may_hold_code_are_not_loaded(torch_bundle: Path, tmp_path: Path) -> None:
    torch.save(Pickled(tmp_path / "it-ran"), torch_bundle / "model.pt2")
    found = verified(torch_bundle)
    for claim in ("accuracy", "speedup"):
        assert found[claim].holds is None
        assert (
            found[claim].found
            == "not run: files of torch may hold code; verify it with the study that made it, which runs its own"
        )
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(("found", "holds"), [(1.85, True), (2.5, True), (1.7, False), (2.7, False)])
def test_a_noisy_speedup_is_held_against_its_own_interval(bundle: Path, found: float, holds: bool) -> None:
    card = card_of(bundle)
    card["measurements"]["speedup"] |= {"value": 2.0, "low": 1.95, "high": 2.6}
    write_card(bundle, card)
    timed: Any = SimpleNamespace(
        time=lambda path, seconds: SimpleNamespace(speedup=found)
    )  # in place of a noisy machine
    checks = {check.claim: check for check in verify_bundle(bundle, lambda *_: nullcontext(timed))}
    assert (checks["speedup"].allowed, checks["speedup"].holds) == ("1.800 to 2.600", holds)


@pytest.fixture
def workload_file(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(WORKLOAD)
    return tmp_path / "task.py"


def test_the_users_workload_scores_it(bundle: Path, workload_file: Path, tmp_path: Path) -> None:
    found = verified(bundle, judge=judge_of_workload("task.py:workload", tmp_path))
    assert not found["accuracy"].holds  # the card claims 0.9, of random images
    assert 0 <= float(found["accuracy"].found) <= 0.8
    assert found["workload"].found.endswith(": other weights or data")
    (tmp_path / "study.yaml").write_text(
        json.dumps(
            {"study": "s", "workload": "task.py:workload", "workload_options": {"size": 16}, "target": "cpu-openvino",
             "objectives": ["flops", "bops"], "budget": {"trials": 1}}
        )
    )  # fmt: skip
    with pytest.raises(UserError, match=r"has inputs of \[3, 16, 16\], the model of .*bundle takes \[3, 8, 8\]"):
        verified(bundle, judge=judge_of_workload(str(tmp_path / "study.yaml"), Path()))


def test_only_the_study_that_made_a_bundle_stands_for_it(
    torch_bundle: Path, workload_file: Path, tmp_path: Path, sqlite_url: str, make_spec: Callable[..., StudySpec]
) -> None:
    opened = open_bundle(torch_bundle)
    with Store(sqlite_url) as store:
        store.create_study(make_spec(workload=f"{workload_file}:workload"), "", {}, {})
        store.start_trial("demo", 0, Policy())
        with pytest.raises(
            UserError, match=r"^study demo did not make .*bundle: trial 0's model there is another; give"
        ):
            judge_of_study(store, "demo", opened)
        with pytest.raises(StoreError, match="no study 'other'"):
            judge_of_study(store, "other", opened)
        ours = tmp_path / "artifacts" / "trial-00000" / "model.pt2"
        for source, path in (("model.pt2", ours), ("reference.pt2", ours.parent.parent / "reference" / "model.pt2")):
            path.parent.mkdir(parents=True)
            path.write_bytes((torch_bundle / source).read_bytes())
        artifact = Artifact.of(ours)
        store.record_artifact("demo", 0, "model", str(ours), artifact.sha256, artifact.bytes)
        judge = judge_of_study(store, "demo", opened)
    assert judge.made_here == {opened.card.files[f"{stem}.pt2"].sha256 for stem in ("model", "reference")}
    found = verified(torch_bundle, judge=judge)  # it is loaded now, and found to be no archive
    assert found["accuracy"].found.startswith("cannot be scored: LoweringError: torch refuses model.pt2")
    (torch_bundle / "model.pt2").write_bytes(b"another")
    assert verified(torch_bundle, judge=judge)["accuracy"].found.startswith("not run: files of torch may hold code")


def test_a_packed_file_that_claims_any_number_of_zeros_is_refused(bundle: Path) -> None:
    path = bundle / "packed.safetensors"
    with pytest.raises(ValueError, match="claims more weights than there can be"):
        load_packed(path, most_values=100)
    assert np.prod(load_packed(path, most_values=1000)["0.weight"].shape) == 108


def test_generated_inputs_are_taken_or_refused_in_one_line(inputs: ModuleType) -> None:
    answers = list(inputs.answers(500, seed=7))
    assert [(kind, seed, problem) for kind, seed, problem, _ in answers if problem] == []
    refused = [kind for kind, _, _, was_refused in answers if was_refused]
    assert all(refused.count(kind) > 50 for kind in ("study file", "target card", "policy", "bundle", "name"))
