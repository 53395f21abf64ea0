"""An artifact computes what its torch model does, up to rounding; one that was tampered with is found out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.core.errors import EvaluationError
from slimfront.evaluators.accuracy import Accuracy
from slimfront.evaluators.agreement import ISA_LIMIT, Agreement
from slimfront.evaluators.evaluator import Context, LoweredCandidate
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import Artifact, get_runtime
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import Tensor, nn

LAYERS = ("stem", "conv", "fc1", "fc2")
LINEAR = ("fc1", "fc2")
FORMS = {
    "float": Policy(),
    "default floats": Policy(float_precision="default"),
    "int8": Policy(layers=dict.fromkeys(LAYERS, LayerPolicy(8, 8))),
    "6-bit weights": Policy(
        layers=dict.fromkeys(LAYERS, LayerPolicy(6, 8))
    ),  # whose products no processor's sums saturate
    "4 bits": Policy(layers=dict.fromkeys(LAYERS, LayerPolicy(4, 4))),
    "2-bit weights": Policy(layers=dict.fromkeys(LAYERS, LayerPolicy(2, 8))),
    "bfloat16": Policy(layers=dict.fromkeys(LAYERS, LayerPolicy(16, 16))),
    "weights alone": Policy(layers=dict.fromkeys(LAYERS, LayerPolicy(8, 32))),
    "codebook": Policy(layers=dict.fromkeys(LAYERS, LayerPolicy(4, 32, codebook="k_means"))),
    "dynamic": Policy(layers=dict.fromkeys(LINEAR, LayerPolicy(8, 8, activation_range="dynamic"))),
    "groups": Policy(layers=dict.fromkeys(LINEAR, LayerPolicy(4, 32, weight_group_size=32))),
}
RUNTIMES = ("openvino", "onnxruntime", "litert")


class Net(nn.Module):
    """A convolution with batch-norm, a residual addition that is also the input of a layer, linear layers; [n, 3, 8, 8] to [n, 6]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(32, 48), nn.Linear(48, 6)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias, 0, 0.3)
        for layer in (self.conv, self.fc1, self.fc2):
            nn.init.normal_(layer.bias, 0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.conv(x)).relu()
        return self.fc2(self.fc1(x.mean((2, 3))).tanh())


@pytest.fixture
def made(context: Context, workload, tmp_path: Path) -> Callable[..., tuple[Candidate, Artifact, Context]]:
    """(policy, runtime) -> a candidate of `Net`, its artifact, and where it is judged."""

    def make(policy: Policy, runtime: str = "onnxruntime") -> tuple[Candidate, Artifact, Context]:
        own = dataclasses.replace(workload, model=Net().eval())
        target = load_target(f"cpu-{runtime}").model_copy(update={"batch": 10})
        at = dataclasses.replace(context, workload=own, runtime=get_runtime(runtime), target=target)
        candidate = make_candidate(own.model, own.example_input, policy, own.calibration)
        path = tmp_path / f"model{at.runtime.suffix}"
        return candidate, at.runtime.lower(candidate, own.example_input, target, path), at

    return make


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("policy", FORMS.values(), ids=FORMS.keys())
def test_what_a_runtime_makes_of_a_candidate_is_what_the_torch_model_makes(
    policy, runtime, made, request: pytest.FixtureRequest
):
    if runtime == "litert" and "groups" in request.node.callspec.id:
        pytest.skip("LiteRT takes no scales by groups")
    if runtime == "openvino" and ISA_LIMIT in os.environ and "dynamic" in request.node.callspec.id:
        pytest.skip("OpenVINO refuses dynamic quantization where its instructions are limited")
    candidate, artifact, at = made(policy, runtime)
    assert Accuracy().evaluate(LoweredCandidate(candidate, artifact), at)


@pytest.mark.parametrize("policy", [FORMS["6-bit weights"], FORMS["float"]], ids=["integers", "float"])
def test_the_simulation_is_exact_where_a_runtime_rounds_at_the_same_places(policy, made):
    candidate, artifact, at = made(policy, "openvino")
    agreement = Agreement.of(candidate, at)
    inputs = np.stack([at.workload.validation[index][0].numpy() for index in range(10)])
    made = at.runtime.load(artifact.path, at.target).run({"input": inputs})
    agreement.watch(torch.from_numpy(inputs), torch.from_numpy(np.array(made["output"])))
    divergence, allowed = agreement.shares
    assert divergence <= 1e-3 * max(allowed, 1e-3)


def values(tensor: TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor).copy()


def put(tensor: TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def named(model: ModelProto, *parts: str) -> TensorProto:
    """The stored tensor with these parts in its name that a node reads, none of a grid's constants."""
    read = {name for node in model.graph.node for name in node.input}
    found = [t for t in model.graph.initializer if t.name in read and all(part in t.name for part in parts)]
    return next(t for t in found if not t.name.endswith((".scale", ".zero_point")))


def permute(model: ModelProto) -> None:
    """The output channels of a weight, in another order."""
    weight = named(model, "conv", "weight")
    put(weight, values(weight)[::-1])


def transpose(model: ModelProto) -> None:
    weight = named(model, "conv", "weight")
    put(weight, values(weight).swapaxes(0, 1))


def drop_bias(model: ModelProto) -> None:
    bias = named(model, "fc1", "bias")
    put(bias, values(bias) * 0)


def drop_activation(model: ModelProto) -> None:
    nodes = [node for node in model.graph.node if node.op_type in ("Relu", "Tanh")]
    for reader in model.graph.node:
        for index, name in enumerate(reader.input):
            if name == nodes[-1].output[0]:
                reader.input[index] = nodes[-1].input[0]


def rescale(model: ModelProto) -> None:
    """A weight, 1.5 times as large."""
    scales = [
        tensor for tensor in model.graph.initializer if "conv" in tensor.name and tensor.name.endswith("weight.scale")
    ]
    tensor = scales[0] if scales else named(model, "conv", "weight")
    put(tensor, values(tensor) * np.float32(1.5))


def swap_channels(model: ModelProto) -> None:
    """The channels of a group: the weights that read them are those of others."""
    weight = named(model, "conv", "weight")
    array = values(weight)
    put(weight, np.roll(array, 1, axis=1))


def flip_kernel(model: ModelProto) -> None:
    weight = named(model, "stem", "weight")
    put(weight, values(weight)[..., ::-1])


def drop_shortcut(model: ModelProto) -> None:
    addition = next(node for node in model.graph.node if node.op_type == "Add" and "fc" not in node.name)
    addition.input[0] = addition.input[1]


FAULTS = (permute, transpose, drop_bias, drop_activation, rescale, swap_channels, flip_kernel, drop_shortcut)


@pytest.mark.parametrize("runtime", RUNTIMES[:2])
@pytest.mark.parametrize("form", ["float", "default floats", "6-bit weights", "weights alone"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_artifact_that_computes_something_else_is_no_result(fault, form, runtime, made):
    candidate, artifact, at = made(FORMS[form], runtime)
    model = onnx.load(artifact.path)
    fault(model)
    onnx.save(model, artifact.path)
    with pytest.raises(
        EvaluationError, match=r"^the runtime computes another function: its outputs differ .+ by 0\.\d+"
    ):
        Accuracy().evaluate(LoweredCandidate(candidate, artifact), at)


@pytest.mark.parametrize("runtime", RUNTIMES[:2])
@pytest.mark.parametrize("form", ["float", "6-bit weights"])
def test_a_model_that_normalises_by_its_batch_is_compared_at_the_targets_batch(form, runtime, made, monkeypatch):
    monkeypatch.setattr(Net, "__init__", normalised_by_batch(Net.__init__))
    candidate, artifact, at = made(FORMS[form], runtime)
    assert not candidate.quantization.norms, "there are no statistics to fold"
    assert Accuracy().evaluate(LoweredCandidate(candidate, artifact), at)


def normalised_by_batch(init: Callable[[Net], None]) -> Callable[[Net], None]:
    def changed(net: Net) -> None:
        init(net)
        net.norm = nn.BatchNorm2d(32, track_running_stats=False)

    return changed
