"""What of TensorRT needs no GPU: the ONNX file its engines are built of, and reading its inspector's report."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from slimfront.compression.quantization.quantize import quantize
from slimfront.core.errors import LoweringError, TargetError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.profiling.profile import SMALL_SHAPE, _asked_model
from slimfront.hardware_profiles.profiling.synthetic import synthetic_candidate
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.nvidia.tensorrt_lowering import executed_precisions, lower
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.quantization_scheme import Scheme
from torch.utils.data import TensorDataset


@pytest.fixture
def symmetric(inputs):
    """(model, bits) -> a candidate on symmetric grids."""

    def make(model: torch.nn.Module, *bits: int) -> Candidate:
        example = torch.zeros(1, *model.shape)
        layers = {layer.name: LayerPolicy(*bits) for layer in find_layers(model, example)}
        policy = Policy(layers=layers, scheme=Scheme(activations="symmetric"))
        data = TensorDataset(inputs(model.shape, 100, 0), torch.zeros(100))
        return Candidate(policy, model, quantize(model, example, policy, data))

    return make


@pytest.mark.parametrize("bits", [(8, 8), (8, 4)], ids=str)
def test_every_pair_is_of_int8_around_zero(bits, symmetric, make_network, inputs, tmp_path: Path, needs_exact_products):
    made = symmetric(make_network("residual"), *bits)
    path = lower(made, torch.zeros(1, *made.model.shape), 50, tmp_path / "model.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 6
    for node in pairs:
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()
    if bits == (8, 8):
        needs_exact_products("onnxruntime")
        needs_exact_products("openvino")
    # It computes what the same policy does on the unsigned grids it was calibrated with.
    samples = inputs(made.model.shape, 50, 1).numpy()
    outputs = onnxruntime.InferenceSession(path).run(None, {"input": samples})[0]
    target = load_target("cpu-openvino").model_copy(update={"batch": 50})
    runtime = get_runtime("openvino")
    unsigned = runtime.lower(made, torch.zeros(1, *made.model.shape), target, tmp_path / "unsigned.onnx")
    expected = runtime.load(unsigned.path, target).run({"input": samples})["output"]
    assert np.abs(outputs - expected).max() <= 2 * np.ptp(expected) / (2 ** min(bits) - 1)


def test_affine_grids_are_refused_with_the_key_to_set(make_network, candidate, tmp_path: Path):
    made = candidate(make_network("residual"), {"blocks.0.conv1": LayerPolicy(8, 8)})
    with pytest.raises(LoweringError, match=r"^blocks\.0\.conv1: TensorRT takes symmetric .*activations: symmetric"):
        lower(made, torch.zeros(1, 3, 8, 8), 1, tmp_path / "model.onnx")


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (4, 8), (8, 32)], ids=str)
def test_what_a_profile_times_can_be_lowered(bits, tmp_path: Path):
    example = torch.zeros(1, *SMALL_SHAPE)
    made = synthetic_candidate(_asked_model(), example, *bits, symmetric=True)
    model = onnx.load(lower(made, example, 1, tmp_path / "model.onnx"))
    integers = {n.op_type for n in model.graph.node if n.op_type.endswith("uantizeLinear")}
    assert integers == ({"QuantizeLinear", "DequantizeLinear"} if bits[1] <= 8 else {"DequantizeLinear"})


REPORT = {
    "Layers": [
        {
            "Name": "/stem/Conv + /Relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "q", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 16, 8, 8], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 432},
            "Metadata": "[ONNX Layer: /stem/Conv]\u001e[ONNX Layer: /Relu]",
        },
        {
            "Name": "/blocks.0/blocks.0.conv1/Conv",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "y", "Dimensions": [1, 16, 8, 8], "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [],
        },
        {"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat", "Inputs": [{"Name": "x", "Format/Datatype": "Int8"}]},
        {
            "Name": "{ForeignNode[/mix/mix.1/MatMul.../head/Gemm]}",
            "LayerType": "Myelin",
            "Inputs": [{"Name": "t", "Format/Datatype": "Half"}],
            "Metadata": "[ONNX Layer: /mix/mix.1/MatMul]",
        },
        {"Name": "/fc/Gemm", "LayerType": "gemm", "Inputs": [{"Name": "z", "Format/Datatype": "Half"}]},
    ],
    "Bindings": ["input", "output"],
}  # fmt: skip
"""As the engine inspector writes it at detailed verbosity (TensorRT developer guide, "Engine Inspector")."""


def test_layers_are_reported_in_the_type_they_read():
    reported = executed_precisions(json.loads(json.dumps(REPORT)))
    assert reported == {"stem": "i8", "blocks.0.conv1": "f32", "fc": "f16"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_gpu_runtimes_say_what_they_need():
    with pytest.raises(
        TargetError, match=r"^runtime 'torch-cuda' needs an NVIDIA GPU with its driver, and torch finds"
    ):
        get_runtime("torch-cuda")
    missing = r"is not installed \(tensorrt is missing\): pip install 'slimfront\[tensorrt\]'$"
    needs = missing if importlib.util.find_spec("tensorrt") is None else "needs an NVIDIA GPU"
    with pytest.raises(TargetError, match=rf"^runtime 'tensorrt' {needs}"):
        get_runtime("tensorrt")
