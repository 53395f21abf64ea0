"""Bundles of real ONNX artifacts, run in fresh processes that cannot import slimfront."""

from __future__ import annotations

import builtins
import dis
import hashlib
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.core.errors import StoreError, TargetError, UserError
from slimfront.core.measurement import Measurement
from slimfront.hardware_profiles.cards.device_card import DeviceCard
from slimfront.hardware_profiles.cards.target import Target, card_text, load_target
from slimfront.hardware_profiles.runtimes.base import Artifact, computed_types, get_runtime
from slimfront.hardware_profiles.runtimes.registry import runtimes
from slimfront.spaces.policies.float_precision import FLOAT_PRECISIONS, FloatPrecision
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.bundles import standalone
from slimfront.studies.bundles.bundle import open_bundle
from slimfront.studies.bundles.card import card_page
from slimfront.studies.bundles.export import export_bundle
from slimfront.studies.store.records import Violation
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from torch import nn
from torch.utils.data import TensorDataset

POLICY = Policy(channels={"conv": 0.5}, layers={"conv": LayerPolicy(weight_bits=8, activation_bits=8)})
ON_ONNX = ["onnxruntime", "openvino"]
FILES = ["card.json", "card.md", "model.onnx", "policy.json", "reference.onnx", "run.py", "weights.safetensors"]
BOUND = "accuracy_drop <= 0.05"
SHAPE = (1, 3, 32, 32)


def write_conv(path: Path, channels: int) -> np.ndarray:
    """A float convolution from 3 to `channels` channels at `path`; returns its weight."""
    weight = np.random.default_rng(channels).standard_normal((channels, 3, 3, 3), dtype=np.float32)
    node = helper.make_node("Conv", ["input", "weight"], ["output"], name="/conv/Conv", pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (1, channels, 32, 32))],
        [numpy_helper.from_array(weight, "weight")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weight


def measured(drop: float, artifact_bytes: int, speedup: float = 8.0) -> list[Measurement]:
    return [
        Measurement("accuracy", 0.98 - drop, 0.9, 0.99, "fraction", 360, "wilson"),
        Measurement("accuracy_drop", drop, drop - 0.002, drop + 0.004, "fraction", 360, "newcombe paired"),
        Measurement.exact("artifact_bytes", artifact_bytes, "file size"),
        Measurement("speedup", speedup, speedup * 0.99, speedup * 1.01, "ratio", 240, "paired-median"),
        Measurement("latency_ms", 2 / speedup, 1.9 / speedup, 2.1 / speedup, "ms", 240, "paired", noisy=True),
    ]


class Study:
    """A study "demo" in a real database, its artifacts in a folder laid out as a search leaves it."""

    def __init__(self, store: Store, folder: Path, spec: StudySpec, flags: Sequence[str]) -> None:
        self.store, self.folder = store, folder
        reference = folder / "reference" / "model.onnx"
        write_conv(reference, 128)
        store.create_study(spec, "fingerprint-1", {"python": "3.11"}, {"cpu": "abacus", "flags": list(flags)})
        store.set_baseline("demo", measured(0.0, reference.stat().st_size, speedup=1.0), spec.target)

    def add_trial(self, number: int, drop: float = 0.01, channels: int = 8, remark: str | None = None) -> Path:
        """A finished trial with its artifacts; returns their folder."""
        folder = self.folder / f"trial-{number:05d}"
        weight = write_conv(folder / "model.onnx", channels)
        save_file({"conv.weight": weight}, folder / "weights.safetensors")
        self.store.start_trial("demo", number, POLICY, worker="host-1/42")
        size = (folder / "model.onnx").stat().st_size
        self.store.add_measurements("demo", number, measured(drop, size), 0, "cpu-openvino")
        for kind, file in (("model", "model.onnx"), ("weights", "weights.safetensors")):
            artifact = Artifact.of(folder / file)
            self.store.record_artifact("demo", number, kind, str(artifact.path), artifact.sha256, artifact.bytes)
        excess = drop - 0.05
        state, reason = ("infeasible", f"violates {BOUND}: {drop}") if excess > 0 else ("complete", remark)
        self.store.finish_trial("demo", number, state, reason, [Violation("accuracy_drop", BOUND, excess)])
        return folder

    def export(self, to: Path, trial: int | None = None, rule: str = "knee") -> int:
        return export_bundle(self.store, "demo", to, trial, rule).number


@pytest.fixture
def make_study(sqlite_url: str, tmp_path: Path, make_spec: Callable[..., StudySpec]) -> Iterator[Callable[..., Study]]:
    with Store(sqlite_url) as store:
        yield lambda flags=("avx2", "avx_vnni"), **changes: Study(
            store, tmp_path / "artifacts", make_spec(**{"constraints": [BOUND], **changes}), flags
        )


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    """Trial 0 alone, on the front."""
    study = make_study()
    study.add_trial(0)
    study.store.save_front("demo", [0], hypervolume=0.01)
    return study


@pytest.fixture
def bundle(study: Study, tmp_path: Path) -> Path:
    study.export(tmp_path / "bundle")
    return tmp_path / "bundle"


def card_of(bundle: Path) -> dict:
    return json.loads((bundle / "card.json").read_text(encoding="utf-8"))


def isolated(code: str, cwd: Path) -> str:
    """What a fresh Python prints that runs `code` without slimfront."""
    blocked = "import sys; sys.modules['slimfront'] = None\n"
    command = [sys.executable, "-I", "-c", blocked + code]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


# What a bundle holds


def test_bundle_holds_the_files_that_were_measured(study: Study, bundle: Path) -> None:
    assert sorted(file.name for file in bundle.iterdir()) == FILES
    trial = study.folder / "trial-00000"
    assert (bundle / "model.onnx").read_bytes() == (trial / "model.onnx").read_bytes()
    assert (bundle / "reference.onnx").read_bytes() == (study.folder / "reference" / "model.onnx").read_bytes()
    np.testing.assert_array_equal(
        load_file(bundle / "weights.safetensors")["conv.weight"],
        load_file(trial / "weights.safetensors")["conv.weight"],
    )
    assert Policy.from_json((bundle / "policy.json").read_text()) == POLICY


def test_card_lists_every_other_file_with_its_sha256(bundle: Path) -> None:
    files = card_of(bundle)["files"]
    assert sorted(files) == sorted(set(FILES) - {"card.json", "card.md"})
    for name, about in files.items():
        content = (bundle / name).read_bytes()
        assert about == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_card_holds_measurements_baseline_target_and_provenance(bundle: Path) -> None:
    card = card_of(bundle)
    assert (card["schema"], card["study"], card["trial"], card["policy_digest"]) == (1, "demo", 0, POLICY.digest)
    assert card["measurements"]["speedup"] == {
        "value": 8.0, "low": 7.92, "high": 8.08, "unit": "ratio", "n": 240, "method": "paired-median", "noisy": False,
    }  # fmt: skip
    assert card["baseline"]["measurements"]["accuracy"]["value"] == 0.98
    assert card["target"] == load_target("cpu-openvino").model_dump()
    assert card["input"] == {"name": "input", "shape": [1, 3, 32, 32], "dtype": "float32"}
    assert card["output"] == {"name": "output", "shape": [1, 8, 32, 32], "dtype": "float32"}
    about = card["provenance"]
    assert (about["workload"], about["workload_fingerprint"], about["seed"]) == ("digits", "fingerprint-1", 0)
    assert about["batch_size"] == 64
    assert (about["worker"], about["machine"]["cpu"], about["versions"]) == ("host-1/42", "abacus", {"python": "3.11"})


def test_card_names_the_trial_whose_recovered_weights_were_taken_over(study: Study, tmp_path: Path) -> None:
    study.add_trial(1, remark="recovered weights of trial 0")
    study.export(tmp_path / "bundle", trial=1)
    assert "Recovered weights of trial 0." in card_of(tmp_path / "bundle")["notes"]


def test_card_of_an_unconfirmed_trial_says_it_was_not_scored_on_the_test_split(bundle: Path) -> None:
    assert card_of(bundle)["test_accuracy"] is None
    notes = card_of(bundle)["notes"]
    assert any(note.startswith("Not scored on the test split") for note in notes)
    assert not any(note.startswith("Saturating") for note in notes)
    assert "Not scored on the test split" in (bundle / "card.md").read_text()


def test_card_of_a_confirmed_trial_has_its_test_accuracy(study: Study, tmp_path: Path) -> None:
    test = Measurement("test_accuracy", 0.97, 0.95, 0.985, "fraction", 450, "wilson")
    study.store.add_measurements("demo", 0, [test], 2, "cpu-openvino")
    study.export(tmp_path / "bundle")
    card = card_of(tmp_path / "bundle")
    assert (card["test_accuracy"]["value"], card["test_accuracy"]["low"], card["test_accuracy"]["n"]) == (
        0.97,
        0.95,
        450,
    )
    assert not any("test split" in note for note in card["notes"])
    assert "| test_accuracy | 0.9700 | 0.9500 to 0.9850 |" in (tmp_path / "bundle" / "card.md").read_text()


def test_card_names_layers_whose_sums_overflow_on_the_machine_it_was_measured_on(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    study = make_study(flags=["avx2"])
    study.add_trial(0)
    study.export(tmp_path / "bundle", trial=0)
    saturating = "Saturating: conv. The processor it was measured on has no VNNI"
    assert any(note.startswith(saturating) for note in card_of(tmp_path / "bundle")["notes"])


def test_page_reads_the_same_as_the_card(bundle: Path) -> None:
    page = (bundle / "card.md").read_text()
    assert page.startswith("# demo, trial 0\n\ndigits, compressed for cpu-openvino: 8.00x as fast")
    assert "| conv | 8 | 8 | 0 |" in page
    assert "| conv | 0.5 | 0.5 |" in page
    assert "Noisy: latency_ms." in page
    for name, about in card_of(bundle)["files"].items():
        assert f"| {name} | {about['bytes']:,} | `{about['sha256']}` |" in page


def test_same_trial_makes_the_same_bundle(study: Study, bundle: Path, tmp_path: Path) -> None:
    study.export(tmp_path / "again", trial=0)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes()


# Which trial


def test_rule_picks_from_the_front(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study()
    for number, (drop, channels) in enumerate([(0.001, 64), (0.01, 16), (0.04, 8)]):
        study.add_trial(number, drop, channels)
    study.store.save_front("demo", [0, 1, 2], hypervolume=0.01)
    assert study.export(tmp_path / "accurate", rule="most-accurate") == 0
    assert study.export(tmp_path / "smallest", rule="smallest") == 2
    assert study.export(tmp_path / "given", trial=1, rule="smallest") == 1
    with pytest.raises(UserError, match="no rule 'kneee'"):
        study.export(tmp_path / "none", rule="kneee")


def test_study_without_front_is_refused_with_the_reason(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study()
    study.add_trial(0, drop=0.2)
    with pytest.raises(UserError, match=r"demo has no front yet: no trial of 1 met .* violated: accuracy_drop <= 0.05"):
        study.export(tmp_path / "bundle")


def test_infeasible_trial_is_exported_with_its_violation(study: Study, tmp_path: Path) -> None:
    study.add_trial(1, drop=0.2)
    assert study.export(tmp_path / "bundle", trial=1) == 1
    card = card_of(tmp_path / "bundle")
    assert card["state"] == "infeasible"
    assert card["notes"][0].startswith("Violates accuracy_drop <= 0.05, by 0.1500")


def test_trials_without_an_artifact_are_refused_with_their_reason(study: Study, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        study.store.start_trial("demo", number, POLICY)
    study.store.finish_trial("demo", 2, "failed", "ValueError: no such luck")
    study.store.finish_trial("demo", 3, "infeasible", "violates latency_ms <= 1: 2")
    for number, line in [
        (1, "trial 1 is still running"),
        (2, "trial 2 failed and cannot be exported: ValueError: no such luck"),
        (3, "trial 3 kept no model to export; it ended infeasible: violates latency_ms <= 1: 2"),
    ]:
        with pytest.raises(UserError, match=line):
            study.export(tmp_path / "bundle", trial=number)
    assert not (tmp_path / "bundle").exists()


def test_unknown_study_and_trial_are_one_line(study: Study, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no trial 9"):
        study.export(tmp_path / "bundle", trial=9)
    with pytest.raises(StoreError, match="no study 'other'"):
        export_bundle(study.store, "other", tmp_path / "bundle", None, "knee")


# What is refused


def tamper(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    return path


def remove(name: str) -> Callable[[Path], Path]:
    def remove_it(folder: Path) -> Path:
        path = (folder / name).resolve()
        path.unlink()
        return path

    return remove_it


def replace_reference(folder: Path) -> Path:
    path = folder.parent / "reference" / "model.onnx"
    write_conv(path, 64)
    return path


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        pytest.param(tamper, "is not the file that was measured", id="another model"),
        pytest.param(remove("model.onnx"), "no such file or directory", id="no model"),
        pytest.param(remove("weights.safetensors"), "no such file or directory", id="no weights"),
        pytest.param(remove("../reference/model.onnx"), "no such file or directory", id="no reference"),
        pytest.param(replace_reference, "is not the uncompressed model that was measured", id="another reference"),
    ],
)
def test_spoilt_artifact_is_refused_by_name(
    study: Study, tmp_path: Path, spoil: Callable[[Path], Path], problem: str
) -> None:
    path = spoil(study.folder / "trial-00000")
    with pytest.raises(UserError, match=problem) as error:
        study.export(tmp_path / "out" / "bundle")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_only_an_empty_folder_is_written_to(study: Study, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"full is not empty; name a new folder"):
        study.export(full)
    assert [file.name for file in full.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="is a file"):
        study.export(full / "mine.txt")
    with pytest.raises(UserError, match="cannot be written: "):
        study.export(full / "mine.txt" / "bundle")
    empty = tmp_path / "empty"
    empty.mkdir()
    study.export(empty)
    assert sorted(file.name for file in empty.iterdir()) == FILES


def test_current_folder_is_refused(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=r"^\. is the folder you are in"):
        study.export(Path("."))
    study.export(Path("parents/are/made"))
    assert sorted(file.name for file in Path("parents/are/made").iterdir()) == FILES


def test_nothing_is_left_when_writing_fails_halfway(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes, written = Path.write_bytes, []

    def write_until_full(path: Path, content: bytes) -> int:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"bundle cannot be written: no space left on device"):
        study.export(tmp_path / "out" / "bundle")
    assert len(written) == 3
    assert list((tmp_path / "out").iterdir()) == []


def test_bundle_has_the_permissions_of_any_new_folder(bundle: Path) -> None:
    plain = bundle.parent / "plain"
    plain.mkdir()
    assert bundle.stat().st_mode == plain.stat().st_mode


def test_target_card_that_is_gone_is_one_line(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study(target="cards/mine.yaml")
    study.add_trial(0)
    with pytest.raises(TargetError, match=r"'cards/mine\.yaml' is neither a shipped card"):
        study.export(tmp_path / "bundle", trial=0)
    assert not (tmp_path / "bundle").exists()


def test_the_card_of_a_measured_target_is_kept_whole(make_study: Callable[..., Study], tmp_path: Path) -> None:
    measured = DeviceCard(
        measured_at=datetime(2026, 1, 1), machine={"cpu": "abacus"}, versions={}, memory_gb_per_s=1.0, dispatch_us=1.0,
        kernels=[], throughput=[], reference_ms={},
    )  # fmt: skip
    target = load_target("cpu-openvino").model_copy(update={"measured": measured})
    (tmp_path / "mine.yaml").write_text(card_text(target))
    study = make_study(target=str(tmp_path / "mine.yaml"))
    study.add_trial(0)
    study.export(tmp_path / "bundle", trial=0)
    assert open_bundle(tmp_path / "bundle").card.target == target


# What runs


@pytest.mark.parametrize("runtime", ON_ONNX)
def test_run_py_reproduces_the_speedup_without_slimfront(
    make_study: Callable[..., Study], tmp_path: Path, runtime: str
) -> None:
    study = make_study(target=f"cpu-{runtime}")
    study.add_trial(0)
    study.export(tmp_path / "bundle", trial=0)
    command = [sys.executable, "-I", "-X", "importtime", "run.py"]
    result = subprocess.run(command, cwd=tmp_path / "bundle", capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr[-1000:]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert runtime in imported
    assert not imported & {"slimfront", "torch", "onnx"}
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert " ".join(lines["outputs"]) == "[1, 8, 32, 32] of inputs [1, 3, 32, 32]"
    # 8 channels instead of 128: a sixteenth of the work.
    assert float(lines["speedup"][0]) > 1.5
    assert lines["recorded"] == ["8", "(7.92", "to", "8.08)"]
    assert sorted(file.name for file in (tmp_path / "bundle").iterdir()) == FILES


@pytest.mark.parametrize("runtime", runtimes())
def test_lines_in_the_page_run_alone(bundle: Path, tmp_path: Path, runtime: str) -> None:
    """Executed for every runtime that is here, and searched for names that are not defined for all."""
    suffix, shape = lowered(runtime, tmp_path / "model"), [1, 3, 8, 8]
    card = card_of(bundle)
    card["target"]["runtime"] = runtime
    card["files"] = {f"model{suffix}": {"bytes": 1, "sha256": ""}, f"reference{suffix}": {"bytes": 1, "sha256": ""}}
    card["inputs"][0]["shape"] = shape
    page = card_page(card, POLICY)
    code = page.partition("```python\n")[2].partition("```")[0]
    assert 10 <= len([line for line in code.splitlines() if line.strip()]) <= 48
    assert undefined_names(compile(code, "card.md", "exec")) == set()
    assert re.search(r"not read from the file|same version", page)
    if (tmp_path / f"model{suffix}").exists():
        assert isolated(f"{code}\nprint(outputs['output'].shape)", tmp_path) == "(1, 4, 8, 8)\n"


def lowered(runtime: str, path: Path, policy: Policy = Policy()) -> str:
    """Lower a convolution to `path`, where `runtime` is here; returns the suffix of its files."""
    try:
        found = get_runtime(runtime)
    except TargetError:
        return ".none"
    inputs = torch.zeros(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    candidate = make_candidate(model, inputs[:1], policy, TensorDataset(inputs, torch.zeros(2)))
    target = Target(name="here", runtime=runtime, weight_bits=[32], activation_bits=[32])
    found.lower(candidate, inputs[:1], target, path.with_suffix(found.suffix))
    return found.suffix


def undefined_names(code: types.CodeType) -> set[str]:
    """Global names that `code` or a function in it reads and that its top level does not define."""
    codes = [code]
    for each in codes:
        codes += [constant for constant in each.co_consts if isinstance(constant, types.CodeType)]
    read = {i.argval for each in codes for i in dis.get_instructions(each) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    defined = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_NAME"}
    return read - defined - set(vars(builtins))


@pytest.mark.parametrize("runtime", runtimes())
def test_loader_gives_the_very_outputs_that_were_scored(tmp_path: Path, runtime: str) -> None:
    path = (tmp_path / "model").with_suffix(lowered(runtime, tmp_path / "model"))
    if not path.exists():
        pytest.skip(f"{runtime} is not here")
    inputs = np.random.default_rng(3).standard_normal((1, 3, 8, 8), dtype=np.float32)
    target = Target(name="here", runtime=runtime, weight_bits=[32], activation_bits=[32])
    expected = get_runtime(runtime).load(path, target).run({"input": inputs})["output"].copy()
    outputs = standalone.LOADERS[runtime](str(path), 1)({"input": inputs})["output"]
    torch.set_grad_enabled(True)  # which torch's loader turns off for good
    np.testing.assert_array_equal(outputs, expected)


def test_every_runtime_has_a_loader() -> None:
    assert sorted(standalone.LOADERS) == runtimes()


def test_openvino_loader_has_the_settings_of_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []
    compile_model = openvino.Core.compile_model

    def recorded(core: openvino.Core, model: object, device: str, config: dict) -> object:
        configs.append((device, config))
        return compile_model(core, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", recorded)
    write_conv(tmp_path / "model.onnx", 8)
    get_runtime("openvino").load(tmp_path / "model.onnx", load_target("cpu-openvino"), threads=2)
    standalone.load_openvino(str(tmp_path / "model.onnx"), 2)
    assert configs[0] == configs[1]
    assert configs[0][1]["INFERENCE_NUM_THREADS"] == 2


@pytest.mark.parametrize("precision", FLOAT_PRECISIONS)
def test_openvino_loader_runs_in_the_precision_of_the_file(tmp_path: Path, precision: FloatPrecision) -> None:
    path = tmp_path / "model.onnx"
    lowered("openvino", path.with_suffix(""), Policy(float_precision=precision))
    inputs = np.random.default_rng(3).standard_normal((1, 3, 8, 8), dtype=np.float32)
    runtime, target = get_runtime("openvino"), load_target("cpu-openvino")
    if precision not in computed_types(runtime, target):
        pytest.skip(f"this processor computes in no {precision}")
    expected = runtime.load(path, target).run({"input": inputs})["output"].copy()
    np.testing.assert_array_equal(standalone.load_openvino(str(path), 1)({"input": inputs})["output"], expected)


def test_onnxruntime_loader_has_the_settings_of_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Recorded(onnxruntime.InferenceSession):
        def __init__(self, path: str, options: onnxruntime.SessionOptions, providers: list[str]) -> None:
            settings = [name for name in dir(options) if not name.startswith("_")]
            made.append((providers, {name: v for name in settings if not callable(v := getattr(options, name))}))
            super().__init__(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    write_conv(tmp_path / "model.onnx", 8)
    get_runtime("onnxruntime").load(tmp_path / "model.onnx", load_target("cpu-onnxruntime"), threads=2)
    standalone.load_onnxruntime(str(tmp_path / "model.onnx"), 2)
    assert made[0] == made[1]
    assert made[0][1]["intra_op_num_threads"] == 2


def test_standalone_pins_to_the_cores_the_bench_is_pinned_to() -> None:
    code = f"import runpy; runpy.run_path({standalone.__file__!r})['pin'](1); import os; print(os.sched_getaffinity(0))"
    assert isolated(code, Path.cwd()).strip() == str({max(os.sched_getaffinity(0))})


def test_standalone_loads_on_no_more_threads_than_cores(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(Path(standalone.__file__).read_text())
    (tmp_path / "card.json").write_text(json.dumps({"target": {"runtime": "openvino", "threads": 999}}))
    code = """
import runpy
load = runpy.run_path("run.py")["load"]
load.__globals__["LOADERS"]["openvino"] = lambda path, threads: lambda inputs: threads
print(load("model.onnx")({}))
"""
    assert isolated(code, tmp_path).strip() == str(len(os.sched_getaffinity(0)))


def test_standalone_interval_holds_the_median() -> None:
    values = [float(value) for value in range(1, 101)]
    # By hand: fewer than 40 of 100 lie below the median with probability 0.0176, more than 60 with the same.
    low, high = standalone.median_interval(values)
    assert (low, high) == (40.0, 61.0)
    assert standalone.median_interval([1.0, 2.0, 3.0]) == (1.0, 3.0)
