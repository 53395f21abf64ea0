"""Recurrent layers in 8 bits: one decision a layer, stored, counted and computed as the torch model says."""

import onnx
import pytest
import torch
from safetensors import safe_open
from slimfront.compression.compress import rounded_model
from slimfront.compression.packing.packed_file import (
    counted_bytes,
    digest,
    load_packed,
    packed_bytes,
    recorded_digest,
    save_packed,
)
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.quantization.fake_quantize import fake_quantized
from slimfront.core.errors import CompressionError, LoweringError, PolicyError
from slimfront.evaluators.counts import counts_of
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.models.layers import macs_by_module
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.layer_policy import LayerPolicy
from slimfront.spaces.policies.policy import Policy
from torch import nn

INPUTS = torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(0))


class Listener(nn.Module):
    """A convolution, a recurrent layer, two linear ones: [n, 20, 6] -> [n, 5]."""

    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 16, 3, padding=1)
        self.rnn = kind(16, 24, batch_first=True, bidirectional=bidirectional)
        self.mid, self.fc = nn.Linear(24 * (1 + bidirectional), 16), nn.Linear(16, 5)

    def forward(self, x):
        out, _ = self.rnn(torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2))
        return self.fc(torch.relu(self.mid(out)).mean(1))


def candidate_of(kind, choice, bidirectional=False, **bits) -> Candidate:
    torch.manual_seed(0)
    layers = {name: LayerPolicy(**bits) for name in ("conv", "mid", "fc")}
    policy = Policy(recurrent={"rnn": choice}, layers=layers)
    model = Listener(kind, bidirectional).eval()
    return make_candidate(model, INPUTS[:1], policy, [(inputs, 0) for inputs in INPUTS])


def run(candidate, runtime, tmp_path):
    target = load_target(f"cpu-{runtime}")
    path = tmp_path / f"model{get_runtime(runtime).suffix}"
    get_runtime(runtime).lower(candidate, INPUTS[:1], target, path)
    session = get_runtime(runtime).load(path, target)
    return (
        torch.from_numpy(session.run({"input": INPUTS[:1].numpy()})["output"].copy()),
        session.executed_precisions(),
        path,
    )


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
@pytest.mark.parametrize(
    ("kind", "bidirectional"), [(nn.GRU, False), (nn.GRU, True), (nn.LSTM, True), (nn.RNN, False)], ids=str
)
def test_every_runtime_computes_with_the_stored_matrices(kind, bidirectional, runtime, tmp_path) -> None:
    candidate = candidate_of(kind, "int8", bidirectional)
    outputs, _, _ = run(candidate, runtime, tmp_path)
    expected = rounded_model(candidate)(INPUTS[:1]).detach()
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(candidate.model(INPUTS[:1]).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_file_has_one_operator_of_int8_matrices_next_to_layers_on_integers(runtime, tmp_path) -> None:
    candidate = candidate_of(nn.GRU, "int8", weight_bits=8, activation_bits=8)
    outputs, executed, path = run(candidate, runtime, tmp_path)
    assert executed["mid"] == executed["fc"] == "i8"
    assert executed["rnn"] == "f32"
    expected = rounded_model(candidate)(INPUTS[:1]).detach()
    torch.testing.assert_close(outputs, expected, rtol=0.1, atol=0.02)
    graph = onnx.load(path).graph
    assert sum(node.op_type == "GRU" for node in graph.node) == 1
    stored = [tensor.dims for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert [1, 72, 16] in stored
    assert [1, 72, 24] in stored


def test_an_lstm_on_dynamic_integers_is_one_operator(tmp_path) -> None:
    candidate = candidate_of(nn.LSTM, "dynamic", bidirectional=True)
    outputs, executed, path = run(candidate, "onnxruntime", tmp_path)
    assert executed["rnn"] == "i8"
    assert "DynamicQuantizeLSTM" in {node.op_type for node in onnx.load(path).graph.node}
    expected = rounded_model(candidate)(INPUTS[:1]).detach()
    torch.testing.assert_close(outputs, expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(("kind", "runtime"), [(nn.GRU, "onnxruntime"), (nn.LSTM, "openvino")])
def test_where_no_kernel_multiplies_integers_that_is_said(kind, runtime, tmp_path) -> None:
    with pytest.raises(LoweringError, match="no kernel here multiplies the integers"):
        run(candidate_of(kind, "dynamic"), runtime, tmp_path)


def test_four_hundred_steps_are_one_operator(tmp_path) -> None:
    model = nn.Sequential(nn.GRU(6, 16, batch_first=True)).eval()
    graph = get_runtime("onnxruntime").lower(
        Candidate(Policy(), _Last(model[0])),
        torch.zeros(1, 400, 6),
        load_target("cpu-onnxruntime"),
        tmp_path / "m.onnx",
    )
    assert sum(node.op_type == "GRU" for node in onnx.load(graph.path).graph.node) == 1


class _Last(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


def test_the_packed_file_holds_what_is_counted(tmp_path) -> None:
    candidate = candidate_of(nn.GRU, "int8", bidirectional=True)
    path = save_packed(candidate, tmp_path / "packed.safetensors")
    assert packed_bytes(path) == counted_bytes(candidate)
    without_grids = Candidate(candidate.policy, candidate.model)
    assert counted_bytes(without_grids) == counted_bytes(candidate)
    counted = counts_of(candidate.model, macs_by_module(candidate.model, INPUTS[:1]), candidate.policy)
    assert counted["packed_bytes"] == counted_bytes(candidate)
    assert recorded_digest(path) == digest(load_packed(path))
    with safe_open(path, "np") as file:
        assert {"rnn.weight_ih_l0", "rnn.weight_hh_l0_reverse", "rnn.weight_ih_l0.scale"} <= set(file.keys())


def test_bits_of_the_matrices_count(tmp_path) -> None:
    model = Listener(nn.LSTM).eval()
    macs = macs_by_module(model, INPUTS[:1])
    plain, stored, multiplied = (
        counts_of(model, macs, Policy(recurrent={"rnn": choice})) for choice in ("float32", "int8", "dynamic")
    )
    elements = 4 * 24 * (16 + 24)
    assert macs["rnn"] == 20 * elements
    assert plain["flops"] == stored["flops"] == macs[""]
    assert plain["bops"] - stored["bops"] == macs["rnn"] * 24 * 32
    assert plain["bops"] - multiplied["bops"] == macs["rnn"] * (32 * 32 - 8 * 8)
    assert plain["packed_bytes"] - stored["packed_bytes"] == elements * 3 - 4 * 2 * 4 * 24


def test_training_on_grids_rounds_and_leaves_rounded_matrices() -> None:
    model, policy = Listener(nn.GRU), Policy(recurrent={"rnn": "int8"})
    with fake_quantized(model, policy, {}):
        model(INPUTS).square().mean().backward()
        assert model.rnn.weight_hh_l0.grad.abs().sum() > 0
        inside = model(INPUTS).detach()
    torch.testing.assert_close(model(INPUTS).detach(), inside)
    rows = model.rnn.weight_hh_l0 / (model.rnn.weight_hh_l0.abs().amax(1, keepdim=True) / 127)
    torch.testing.assert_close(rows, rows.round(), rtol=0, atol=1e-3)


def test_a_policy_with_recurrent_layers_is_json_and_old_ones_are_what_they_were() -> None:
    policy = Policy(recurrent={"rnn": "int8", "other": "float32"})
    assert policy.to_json() == '{"recurrent":{"rnn":"int8"},"schema":1}'
    assert Policy.from_json(policy.to_json()) == policy
    assert Policy().to_json() == '{"schema":1}'
    with pytest.raises(PolicyError, match="recurrent rnn must be one of"):
        Policy(recurrent={"rnn": "int4"})


def test_a_policy_of_another_layer_is_refused() -> None:
    with pytest.raises(CompressionError, match="no recurrent layer 'fc'"):
        make_candidate(Listener(nn.GRU), INPUTS[:1], Policy(recurrent={"fc": "int8"}), [(INPUTS[0], 0)])
