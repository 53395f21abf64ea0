"""What `slimfront inspect` tells of workloads whose structure is known."""

import gc
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from slimfront.cli import app
from slimfront.core.errors import LoweringError, StudyFileError, WorkloadError
from slimfront.core.threads import torch_threads
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.onnx.openvino_runtime import OpenVinoRuntime, computes
from slimfront.spaces.models.layers import Layer, find_every_layer
from slimfront.studies.inspection import float_artifact, precision_probe
from slimfront.studies.inspection import inspect as inspection
from slimfront.studies.inspection.float_artifact import require_artifact
from slimfront.studies.inspection.inspect import inspect_reference, inspect_workload
from slimfront.studies.inspection.precision_probe import bits_on
from slimfront.studies.inspection.report import inspection_tables
from slimfront.workloads.load import load_workload
from slimfront.workloads.workload import Workload
from torch import nn
from torch.fx import GraphModule
from torch.utils.data import TensorDataset
from typer.testing import CliRunner


def printed(found):
    console = Console(width=1000)
    with console.capture() as capture:
        console.print(inspection_tables(found))
    return capture.get()


def test_the_digits_network(digits_workload):
    found = inspect_workload(digits_workload, load_target("cpu-openvino"))
    assert len(found.layers) == 16
    assert sum(layer.macs for layer in found.layers) <= found.macs
    assert found.unprunable == {"fc": "its channels are the model's output"}
    assert list(found.blocks) == ["blocks.0", "blocks.1", "blocks.3", "blocks.5"]
    assert all(0 < influence < 1 for influence in found.blocks.values())
    assert found.family == "cnn"
    assert found.float_only is None
    stem, fc = found.layers[0], found.layers[-1]
    assert stem.refused["2:4"] == "its input dimension is not a multiple of 4"
    assert stem.group == next(group.name for group in found.groups if "stem.conv" in group.layers)
    assert fc.refused["separable"] == "the layer is not a convolution"
    assert found.bits["weight 8"] == found.bits["activation 8"] == "i8 in 16 of 16"
    assert found.bits["weight 4"] == "storage only: i8 in 16 of 16"
    halves = "bf16 in 16 of 16" if computes("bfloat16") else "storage only: f32 in 16 of 16"
    assert found.bits["weight 16"] == found.bits["activation 16"] == halves
    assert found.fixed_blocks["blocks.2"] == "it maps [1, 32, 16, 16] to [1, 64, 8, 8]"
    assert all(gain.after < gain.before for gain in found.gains)
    assert {gain.technique for gain in found.gains} == {"channels", "bits", "all together"}
    assert found.gains[0].how == "width 0.25, channel sparsity 0.5"


def test_a_studys_own_space_is_what_is_shown(digits_workload, make_spec):
    space = {"width": [1.0, 0.5], "operators": ["dense", "groups=8"], "keep": ["stem.*", "blocks.0"]}
    found = inspect_workload(digits_workload, spec=make_spec(space=space))
    assert found.choices == {"width": (1.0, 0.5), "operators": ("dense", "groups=8"), "keep": ("stem.*", "blocks.0")}
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["stem.conv"].refused == {"anything": "space.keep holds it back"}
    assert by_name["fc"].refused == {"groups=8": "the layer is not a convolution"}
    assert found.unprunable["stem.conv"] == found.fixed_blocks["blocks.0"] == "space.keep holds it back"
    assert "stem.conv" not in {group.name for group in found.groups}
    assert {gain.technique for gain in found.gains} == {"channels", "operators", "all together"}


def test_a_model_that_cannot_be_captured_is_searched_without_bits_and_says_why(digits_workload):
    class Branches(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) if x.sum() > 0 else self.model(x * 2)

    found = inspect_workload(replace(digits_workload, model=Branches(digits_workload.model)))
    assert found.float_only.startswith("torch.export cannot capture the model: ")
    assert {gain.technique for gain in found.gains} == {"channels", "all together"}
    assert f"none below 32: {found.float_only[:40]}" in printed(found)


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 8, proj_size=4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def workload_of(model, *shape: int) -> Workload:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(12, *shape), torch.arange(12) % 3)
    return Workload(model, data, data, data, data, data.tensors[0][:1], name="own")


@pytest.mark.parametrize("target", ["cpu-openvino", "cpu-onnxruntime"])
def test_a_model_that_the_targets_runtime_does_not_take_is_refused_in_a_line(target, capfd):
    with pytest.raises(
        WorkloadError, match=rf"^workload own: target {target} does not take the model: ONNX export failed: .*LSTM"
    ) as raised:
        inspect_workload(workload_of(Projected(), 6, 4), load_target(target))
    assert str(raised.value).endswith("LSTMs with projections.")
    assert capfd.readouterr().out == "", "the exporter prints the graph"


def test_an_artifact_that_computes_another_function_is_refused(monkeypatch):
    workload = workload_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 4)
    require_artifact(workload, load_target("cpu-openvino"))
    monkeypatch.setattr(float_artifact, "run", lambda *_: {"output": np.zeros((1, 3), np.float32)})
    with pytest.raises(WorkloadError, match="does not take the model: the runtime computes another function"):
        require_artifact(workload, load_target("cpu-openvino"))


def layers_of(workload) -> list[Layer]:
    return find_every_layer(workload.model, workload.example_input)


def test_bits_are_what_the_runtime_reports_and_not_what_one_would_guess(digits_workload):
    simulated = load_target("cpu-torch").model_copy(
        update={"weight_bits": [8, 32], "activation_bits": [8, 32], "threads": 7}
    )
    with torch_threads(1):
        assert (
            bits_on(digits_workload, layers_of(digits_workload), simulated)["weight 8"]
            == "storage only: f32 in 16 of 16"
        )
        assert torch.get_num_threads() == 1  # a session of torch's sets the process's
    compiled = bits_on(digits_workload, layers_of(digits_workload), load_target("cpu-torch-compile"))
    assert compiled["weight 8"].startswith("not asked: every answer takes a compilation")
    assert compiled["weight 32"] == "float32, as it is"
    far = load_target("cpu-torch").model_copy(update={"remote": True})
    assert (
        bits_on(digits_workload, layers_of(digits_workload), far)["weight 8"]
        == "not asked: the target is elsewhere; profile it there"
    )


def test_a_width_that_cannot_be_lowered_leaves_the_other_answers(digits_workload, monkeypatch):
    real = precision_probe._executed

    def executed(workload, target, policy):
        if any(layer.weight_bits == 16 for layer in policy.layers.values()):
            raise LoweringError("no such weight")
        return real(workload, target, policy)

    monkeypatch.setattr(precision_probe, "_executed", executed)
    bits = bits_on(digits_workload, layers_of(digits_workload), load_target("cpu-openvino"))
    assert bits["weight 16"] == "not asked: no such weight"
    assert bits["weight 8"] == "i8 in 16 of 16"


def captured_graphs() -> int:
    return sum(issubclass(type(each), GraphModule) for each in gc.get_objects())


def test_no_graph_that_was_captured_is_left_while_the_target_compiles(digits_workload, monkeypatch):
    """Each holds the model's weights, in a circle of references; but the one that is captured once, with its guard, stays."""
    left = []
    loading = OpenVinoRuntime.load

    def load(self, *arguments):
        left.append(captured_graphs())
        return loading(self, *arguments)

    gc.collect()
    before = captured_graphs()
    monkeypatch.setattr(OpenVinoRuntime, "load", load)
    bits_on(digits_workload, layers_of(digits_workload), load_target("cpu-openvino"))
    assert len(left) > 1
    assert max(left) <= before + 2


MASKED = '''
import torch
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


class Masked(nn.Module):
    """torch's own encoder over tokens of which the last are padding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        padding = x.abs().sum(-1) == 0
        return self.fc(self.encoder(self.embed(x), src_key_padding_mask=padding).mean(1))


def workload():
    tokens = torch.randn(12, 6, 4)
    tokens[:, 4:] = 0
    data = TensorDataset(tokens, torch.arange(12) % 3)
    return Workload(Masked(), data, data, data, data, tokens[:1])
'''


def test_an_encoder_with_a_padding_mask_is_inspected(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", True)
    (tmp_path / "own.py").write_text(MASKED)
    found = inspect_workload(load_workload("own.py:workload", base=tmp_path))
    assert {"encoder.layers.0.linear1", "encoder.layers.1.linear1"} <= {group.name for group in found.groups}
    assert not found.skipped


def test_a_reason_that_several_modules_share_is_printed_once(tmp_path):
    own_keys = "\n        for layer in self.encoder.layers:\n            layer.self_attn = nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=True)\n        self.fc ="
    (tmp_path / "own.py").write_text(MASKED.replace("\n        self.fc =", own_keys))
    found = inspect_workload(load_workload("own.py:workload", base=tmp_path))
    assert len([name for name in found.skipped if name.endswith("self_attn")]) == 2
    assert printed(found).count("an attention whose weights are read too") == 1
    assert "encoder.layers.*.self_attn (2)" in printed(found)


@pytest.mark.slow
def test_the_command_prints_tables_and_json():
    runner = CliRunner()
    printed = runner.invoke(app, ["inspect", "digits-demo"], env={"COLUMNS": "160"})
    assert printed.exit_code == 0
    for words in ("Channel groups", "Groups that cannot be pruned", "fc", "Upper bound of gain"):
        assert words in printed.stdout
    reported = json.loads(
        runner.invoke(app, ["inspect", "digits", "--target", "cpu-openvino", "--format", "json"]).stdout
    )
    assert reported["target"] == "cpu-openvino"
    assert reported["groups"][0]["multiple"] == 4


@pytest.mark.parametrize(
    ("reference", "error"), [("nowhere.yaml", StudyFileError), ("nowhere", WorkloadError)], ids=["study", "workload"]
)
def test_what_is_not_there_is_one_line(reference, error):
    with pytest.raises(error, match="nowhere"):
        inspect_reference(reference)


@pytest.mark.slow
def test_random_images_are_few_unless_the_study_says_how_many(monkeypatch):
    found = []
    real = inspection.load_workload
    monkeypatch.setattr(inspection, "load_workload", lambda *args: found.append(real(*args)) or found[-1])
    inspect_reference("torchvision:squeezenet1_1")
    assert len(found[0].train) + len(found[0].test) + len(found[0].validation) + len(found[0].calibration) == 20
