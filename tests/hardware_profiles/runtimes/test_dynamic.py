"""Activations quantized at run time: the numbers of ONNX's own operations, and what each runtime makes of them."""

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.quantization.fake_quantize import dynamic_grid, fake_quantized
from slimfront.core.errors import CompressionError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.onnx.lowering import lower
from slimfront.hardware_profiles.runtimes.onnx.options import LoweringOptions
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import Tensor, nn
from torch.utils.data import TensorDataset

DYNAMIC = LayerPolicy(8, 8, activation_range="dynamic")
BATCH = 5


class Gated(nn.Module):
    """Two linear layers of one input, a third of tokens: [n, 6, 64] to [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.value, self.fc = nn.Linear(64, 64), nn.Linear(64, 64, bias=False), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.gate(x).sigmoid() * self.value(x)).mean(1))


def candidate(**layers: LayerPolicy) -> Candidate:
    data = TensorDataset(samples(50), torch.zeros(50))
    return make_candidate(Gated().eval(), samples(1), Policy(layers=layers), data)


def samples(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 64, generator=torch.Generator().manual_seed(seed))


def by_hand(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer on integers, in float64: 255 steps over the range of `x`, 127 over a channel's largest weight."""
    step, origin = dynamic_grid(x)
    integers = (x.double() / step).round() + origin
    weight = layer.weight.detach().double()
    scale = weight.abs().amax(1, keepdim=True) / 127
    product = (integers.clamp(0, 255) - origin) @ (weight / scale).round().T
    return product * step * scale.T + (0 if layer.bias is None else layer.bias.detach().double())


def test_the_grid_of_a_tensor_by_hand():
    step, origin = dynamic_grid(torch.tensor([3.1, -2.0, 0.5]))
    assert step == pytest.approx(5.1 / 255)
    assert origin == 100
    assert dynamic_grid(torch.tensor([5.1, 2.0])) == (pytest.approx(0.02), 0)  # zero is on every grid


def test_the_file_computes_by_onnx_itself_what_integers_give_by_hand(tmp_path):
    made = candidate(gate=DYNAMIC, value=DYNAMIC, fc=DYNAMIC)
    path = lower(made, samples(1), BATCH, tmp_path / "model.onnx", LoweringOptions(integer_products=True))
    model, x = onnx.load(path), samples(BATCH, 1)
    operations = [node.op_type for node in model.graph.node]
    assert operations.count("MatMulInteger") == 3
    assert operations.count("DynamicQuantizeLinear") == 2  # gate and value read one tensor
    assert not {"MatMul", "Gemm", "DequantizeLinear"} & set(operations)
    network = made.model
    hidden = by_hand(network.gate, x).sigmoid() * by_hand(network.value, x)
    expected = by_hand(network.fc, hidden.float().mean(1))
    found = ReferenceEvaluator(model).run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # a number on the edge of two steps takes either
    with torch.no_grad(), fake_quantized(made.model, made.policy, {}):
        np.testing.assert_allclose(made.model(x), expected, atol=2e-3)


@pytest.mark.parametrize("name", ["litert", "onnxruntime", "openvino", "torch"])
def test_a_runtime_computes_it_and_tells_in_what(name, tmp_path, needs_exact_products):
    needs_exact_products(name)
    runtime, target = get_runtime(name), load_target(f"cpu-{name}").model_copy(update={"batch": BATCH})
    made, x = candidate(gate=DYNAMIC, value=DYNAMIC, fc=LayerPolicy(8, 8)), samples(BATCH, 1)
    artifact = runtime.lower(made, samples(1), target, tmp_path / f"model{runtime.suffix}")
    session = runtime.load(artifact.path, target)
    with torch.no_grad():
        exact = made.model(x).numpy()
        with fake_quantized(made.model, made.policy, made.quantization.inputs):
            expected = made.model(x).numpy()
    found = np.array(session.run({"input": x.numpy()})["output"])
    np.testing.assert_allclose(found, expected, atol=0.02 * np.ptp(exact))
    precision = "f32" if name == "torch" else "i8"
    reported = dict.fromkeys(("gate", "value", "fc"), precision)
    if name == "litert":  # what writes floats computes in integers only where it finds its range itself
        reported["fc"] = "f32"
    assert session.executed_precisions() == reported


def test_openvino_quantizes_inputs_at_run_time_only_where_that_was_decided(tmp_path, needs_exact_products):
    needs_exact_products("openvino")  # without them it leaves the inputs in float
    runtime, target = get_runtime("openvino"), load_target("cpu-openvino").model_copy(update={"batch": BATCH})
    outputs = {}
    for layer in (LayerPolicy(8, 32), DYNAMIC):
        made = candidate(gate=layer, value=layer)
        artifact = runtime.lower(made, samples(1), target, tmp_path / f"{layer.activation_range}.onnx")
        outputs[layer] = np.array(
            runtime.load(artifact.path, target).run({"input": samples(BATCH, 1).numpy()})["output"]
        )
        with (
            torch.no_grad(),
            fake_quantized(made.model, Policy(layers=dict.fromkeys(("gate", "value"), LayerPolicy(8, 32))), {}),
        ):
            exact = made.model(samples(BATCH, 1)).numpy()
    np.testing.assert_allclose(outputs[LayerPolicy(8, 32)], exact, atol=1e-5)
    assert np.abs(outputs[DYNAMIC] - exact).max() > 1e-4


def test_a_convolution_is_not_quantized_dynamically():
    model = nn.Sequential(nn.Conv1d(6, 2, 1)).eval()
    with pytest.raises(CompressionError, match="layer '0' is not linear; only linear layers are quantized"):
        make_candidate(model, samples(1), Policy(layers={"0": DYNAMIC}), TensorDataset(samples(9), torch.zeros(9)))
