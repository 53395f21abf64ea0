"""Linear layers that read one tensor are computed as one product, with the numbers they had apart."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from slimfront.compression.quantization.quantize import quantize
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.onnx.lowering import lower
from slimfront.hardware_profiles.runtimes.onnx.options import LoweringOptions
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.workloads.builtin.digits_rnn import GRU, DigitsRNN
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Attention(nn.Module):
    """Three layers of different widths that read the same tokens, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 5)
        self.gate = nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ self.key(x).transpose(-2, -1)).softmax(-1)
        return (weights @ self.value(x) * self.gate(x)).sum(1)


MODELS = {"attention": (Attention, (3, 6)), "gru": (lambda: DigitsRNN(GRU, hidden=8), (1, 16, 16))}
POLICIES = {"float": (32, 32), "int8": (8, 8), "weight-only": (8, 32)}


def made(kind: str, bits: dict[str, tuple[int, int]] | tuple[int, int]) -> tuple[Candidate, Tensor]:
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    model, inputs = make().eval(), torch.randn(20, *shape)
    layers = [layer.name for layer in find_layers(model, inputs[:1])]
    chosen = dict.fromkeys(layers, bits) if isinstance(bits, tuple) else bits
    policy = Policy(layers={name: LayerPolicy(*pair) for name, pair in chosen.items()})
    data = TensorDataset(inputs, torch.zeros(20, dtype=torch.int64))
    return Candidate(policy, model, quantize(model, inputs[:1], policy, data)), inputs[:1]


def products(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node if node.op_type in ("Gemm", "MatMul")]


def evaluated(path: Path, example: Tensor) -> np.ndarray:
    """Outputs of a file, operation by operation as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": example.numpy()})[0]


@pytest.mark.parametrize("bits", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_joined_file_computes_what_the_other_does(kind: str, bits: tuple[int, int], tmp_path: Path) -> None:
    candidate, example = made(kind, bits)
    apart = lower(candidate, example, 1, tmp_path / "apart.onnx")
    joined = lower(candidate, example, 1, tmp_path / "joined.onnx", LoweringOptions(fused_linears=True))
    outputs = [evaluated(path, example) for path in (apart, joined)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_a_gru_has_one_product_for_each_layers_inputs_and_one_for_each_step(tmp_path: Path) -> None:
    candidate, example = made("gru", (8, 8))
    path = lower(candidate, example, 1, tmp_path / "model.onnx", LoweringOptions(fused_linears=True))
    assert len(products(path)) == 2 * (1 + 15) + 1  # the first state is zero: that step's products are constants


def test_only_layers_that_hold_their_weights_alike_are_joined(tmp_path: Path) -> None:
    candidate, example = made("attention", {"query": (8, 32), "key": (8, 32)})
    path = lower(candidate, example, 1, tmp_path / "model.onnx", LoweringOptions(fused_linears=True))
    # gate has no bias; value alone is float with one
    assert sorted(name.split("/")[-2] for name in products(path) if "+" in name) == ["query+key"]
    weights = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    assert [shape for name, shape in weights.items() if name.endswith("weight.q")] == [(6, 8)]


def test_nothing_of_the_layers_apart_is_left_in_the_file(tmp_path: Path) -> None:
    candidate, example = made("gru", (8, 8))
    model = onnx.load(lower(candidate, example, 1, tmp_path / "model.onnx", LoweringOptions(fused_linears=True)))
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    onnx.checker.check_model(model)


@pytest.mark.parametrize("bits", [(8, 8), (32, 32)], ids=["int8", "float"])
@pytest.mark.parametrize("kind", MODELS)
def test_openvino_tells_the_precision_of_every_joined_layer(kind: str, bits: tuple[int, int], tmp_path: Path) -> None:
    candidate, example = made(kind, bits)
    target, runtime = load_target("cpu-openvino"), get_runtime("openvino")
    artifact = runtime.lower(candidate, example, target, tmp_path / "model.onnx")
    precisions = runtime.load(artifact.path, target).executed_precisions()
    reported = {layer.name: precisions.get(layer.name) for layer in find_layers(candidate.model, example)}
    assert reported == dict.fromkeys(reported, "i8" if bits == (8, 8) else "f32")
