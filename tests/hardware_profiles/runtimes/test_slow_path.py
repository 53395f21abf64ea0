"""Lowering against the slow path it stands for: torch.export, torchao's conversion, and torch's own export to ONNX.

Both files run in the same engine. Torch itself rounds elsewhere than integer kernels do, and so does one engine than another;
in a deep network of random weights a number that falls to the other side of one edge moves the outputs by several steps, as
does changing the input by a millionth. Between two files for one engine there is nothing of that.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from slimfront.compression.quantization.quantize import quantize
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.onnx.onnxruntime_runtime import OnnxRuntimeSession
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

pytestmark = pytest.mark.slow

SAMPLES = 200
POOLS = ("GlobalAveragePool", "ReduceMean", "Flatten", "Reshape")
"""How the two exporters spell the mean over an image."""


class Lowered(NamedTuple):
    """A candidate, inputs for it in batches, and the slow path's file."""

    candidate: Candidate
    batches: tuple[Tensor, ...]
    slow: Path


def large() -> tuple[nn.Module, Tensor, Tensor]:
    """ResNet-18 of random weights at 224 with batch-norm statistics of its calibration inputs, these, and inputs."""
    torch.manual_seed(0)
    model, calibration, inputs = resnet18(), torch.randn(4, 3, 224, 224), torch.randn(SAMPLES, 3, 224, 224)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(calibration)
    return model.eval(), calibration, inputs


def small(workload: Workload) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained digits model, its calibration images and some of its validation."""
    return workload.model, workload.calibration.tensors[0], workload.validation.tensors[0][:SAMPLES]


@pytest.fixture(scope="module", params=["digits", "resnet18"])
def lowered(
    request: pytest.FixtureRequest,
    digits_workload: Workload,
    converted_graph: Callable[..., nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Lowered:
    model, calibration, inputs = large() if request.param == "resnet18" else small(digits_workload)
    batches = inputs.split(min(50, len(calibration)))
    layers = [layer.name for layer in find_layers(model, inputs[:1])]
    policy = Policy(layers={name: LayerPolicy(4 if number % 3 == 1 else 8, 8) for number, name in enumerate(layers)})
    data = TensorDataset(calibration, torch.zeros(len(calibration)))
    candidate = Candidate(policy, model, quantize(model, inputs[:1], policy, data))
    graph = converted_graph(candidate, batches[0], calibration)
    slow = tmp_path_factory.mktemp("slow") / f"{request.param}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter deprecates parts of itself
        torch.onnx.export(
            graph, (batches[0],), slow, dynamo=True, input_names=["input"], output_names=["output"],
            external_data=False, verbose=False,
        )  # fmt: skip
    return Lowered(candidate, batches, slow)


@pytest.fixture(params=["onnxruntime", "openvino"])
def files(request: pytest.FixtureRequest, lowered: Lowered, tmp_path: Path, needs_exact_products):
    """Sessions of the file that lowering writes and of the slow path's."""
    if request.param == "onnxruntime":
        needs_exact_products(request.param)
    runtime, batch = get_runtime(request.param), lowered.batches[0]
    target = load_target(f"cpu-{request.param}").model_copy(update={"batch": len(batch)})
    artifact = runtime.lower(lowered.candidate, batch[:1], target, tmp_path / "model.onnx")
    return runtime.load(artifact.path, target), runtime.load(lowered.slow, target)


def test_the_file_computes_what_the_slow_paths_does(files, lowered: Lowered):
    outputs, expected = (
        np.concatenate([np.array(session.run({"input": batch.numpy()})["output"]) for batch in lowered.batches])
        for session in files
    )
    assert len(outputs) == SAMPLES
    step = np.ptp(expected) / 255
    assert np.abs(outputs - expected).max() <= step
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > step  # of random weights, some answers are as good as a tie
    assert (outputs.argmax(1) == expected.argmax(1))[clear].all()
    assert clear.mean() > 0.5


def grids(model: ModelProto) -> Counter[tuple[float, int]]:
    """Steps that tensors are put on, and how far above the lowest integer zero is."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    affine = [(constants[node.input[1]], constants[node.input[2]]) for node in readers]
    return Counter((float(step), int(zero) - np.iinfo(zero.dtype).min) for step, zero in affine)


def integers(model: ModelProto) -> Counter[bytes]:
    """Weights."""
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    return Counter(numpy_helper.to_array(tensor).tobytes() for tensor in weights if len(tensor.dims) > 1)


def test_the_file_holds_the_slow_paths_integers_grids_and_operations(lowered: Lowered, tmp_path: Path):
    path = tmp_path / "model.onnx"
    get_runtime("openvino").lower(lowered.candidate, lowered.batches[0][:1], load_target("cpu-openvino"), path)
    fast, slow = onnx.load(path), onnx.load(lowered.slow)
    assert integers(fast) == integers(slow)
    assert grids(fast) == grids(slow)
    operations = [Counter(n.op_type for n in m.graph.node if n.op_type not in POOLS) for m in (fast, slow)]
    assert operations[0] == operations[1]
    assert not operations[0]["BatchNormalization"]


@pytest.mark.parametrize("lowered", ["resnet18"], indirect=True)
def test_every_layer_runs_in_integers_with_norms_activations_and_additions_in_it(files, lowered: Lowered):
    session, _ = files
    assert session.executed_precisions() == dict.fromkeys(lowered.candidate.policy.layers, "i8")
    if isinstance(session, OnnxRuntimeSession):  # the last addition has no grid after it before the mean over the image
        executed = Counter(node.op_type for node in session._optimised_nodes())
        assert {kind: executed[kind] for kind in ("QLinearConv", "QLinearAdd", "Add", "Relu")} == {
            "QLinearConv": 20, "QLinearAdd": 7, "Add": 1, "Relu": 1
        }  # fmt: skip
    else:
        operations = session._compiled.get_runtime_model().get_ordered_ops()
        executed = Counter(operation.get_rt_info()["layerType"].astype(str) for operation in operations)
        assert (executed["Convolution"], executed["FullyConnected"]) == (20, 1)
        assert not executed.keys() & {"Eltwise", "Relu", "ReLU", "Math", "BatchNormInference", "ScaleShift", "Subgraph"}
