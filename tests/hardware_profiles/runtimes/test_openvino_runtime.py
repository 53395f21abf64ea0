"""What is particular to OpenVINO."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import openvino
import pytest
import torch
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.profiling.fingerprint import machine
from slimfront.hardware_profiles.runtimes.onnx import openvino_runtime
from slimfront.hardware_profiles.runtimes.onnx.onnxruntime_runtime import OnnxRuntime
from slimfront.hardware_profiles.runtimes.onnx.openvino_runtime import PRECISION, OpenVinoRuntime, shared_core
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.bundles.standalone import load_openvino
from torch import Tensor, nn


@pytest.fixture
def scaled(make_network, candidate, tmp_path):
    """A quantized model with LayerScale between linear layers, its artifact for a batch of four, and inputs."""
    model = make_network("scaled")
    made = candidate(model, dict.fromkeys(("first", "second", "third"), LayerPolicy(8, 8)))
    target = load_target("cpu-openvino").model_copy(update={"batch": 4})
    artifact = OpenVinoRuntime().lower(made, torch.zeros(1, 10), target, tmp_path / "model.onnx")
    samples = torch.linspace(-1, 1, 40).reshape(4, 10)
    with torch.no_grad():
        return artifact.path, target, samples.numpy(), model(samples).numpy()


def test_batch_norm_activations_and_residual_additions_are_fused_into_integer_convolutions(
    make_network, candidate, tmp_path
):
    model = make_network("residual")
    convolutions = ["stem", *(f"blocks.{block}.conv{layer}" for block in (0, 1) for layer in (1, 2))]
    made = candidate(model, dict.fromkeys((*convolutions, "fc"), LayerPolicy(8, 8)))
    target = load_target("cpu-openvino")
    artifact = OpenVinoRuntime().lower(made, torch.zeros(1, *model.shape), target, tmp_path / "model.onnx")
    session = OpenVinoRuntime().load(artifact.path, target)
    assert session.executed_precisions() == dict.fromkeys((*convolutions, "fc"), "i8")
    executed = [operation.get_rt_info() for operation in session._compiled.get_runtime_model().get_ordered_ops()]
    kinds = Counter(information["layerType"].astype(str) for information in executed)
    assert (kinds["Convolution"], kinds["FakeQuantize"]) == (5, 1)  # the latter quantizes the input
    # Nothing of the five batch-norms, five ReLUs and two additions is left to run by itself.
    assert not set(kinds) & {"Eltwise", "Relu", "ReLU", "Math", "BatchNormInference", "ScaleShift"}, kinds


class Permuted(nn.Module):
    """Channels by their numbers."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.order: Tensor
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order]


ORDERS = {
    "moved": torch.arange(8).roll(3), "from behind": torch.arange(8).roll(3) - 8, "some": torch.tensor([5, 3, 4]), "one": torch.tensor([1]),
    "flipped": torch.arange(8).flip(0),
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_channels_that_are_read_by_number_meet_the_right_weights(order, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Permuted(order), nn.Conv2d(len(order), 4, 3)).eval()
    images, target = torch.randn(1, 3, 8, 8), load_target("cpu-openvino")
    artifact = OpenVinoRuntime().lower(Candidate(Policy(), model), images, target, tmp_path / "model.onnx")
    found = OpenVinoRuntime().load(artifact.path, target).run({"input": images.numpy()})["output"]
    np.testing.assert_allclose(found, model(images).detach().numpy(), atol=1e-5)


def test_a_multiplication_between_quantized_linear_layers_is_right_at_small_batches(scaled, needs_exact_products):
    needs_exact_products("openvino")
    path, target, samples, expected = scaled
    within = 0.05 * np.ptp(expected)
    assert np.abs(OpenVinoRuntime().load(path, target).run({"input": samples})["output"] - expected).max() < within
    assert np.abs(load_openvino(str(path), 1)({"input": samples})["output"] - expected).max() < within


@pytest.mark.skipif(not openvino.__version__.startswith("2026.4"), reason="seen in OpenVINO 2026.4")
def test_why_snippets_are_switched_off(scaled, needs_exact_products):
    """Fails once OpenVINO is mended for this version range; then the setting and this test can go."""
    needs_exact_products("openvino")  # whose kernels are others there
    path, _, samples, expected = scaled
    core = shared_core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled({0: samples})[0] - expected).max() > np.ptp(expected)


class Averaged(nn.Module):
    """[n, 10] to [n, 3]: two linear layers over five tokens each, and what a reduction makes of them between."""

    shape = (10,)

    def __init__(self, reduction) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after, self.reduction = nn.Linear(2, 16), nn.Linear(16, 3), reduction

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.reduction(self.before(x.unflatten(1, (5, 2)))))


@pytest.mark.parametrize(
    "reduction",
    [lambda x: x.mean(1), lambda x: x.sum(1), lambda x: x.amax(1), lambda x: x.mean((1,), keepdim=True)[:, 0]],
    ids=["mean", "sum", "maximum", "kept"],
)
def test_a_reduction_over_tokens_between_quantized_linear_layers_is_right(
    reduction, candidate, tmp_path, needs_exact_products
):
    needs_exact_products("openvino")
    made = candidate(Averaged(reduction).eval(), dict.fromkeys(("before", "after"), LayerPolicy(8, 8)))
    target = load_target("cpu-openvino").model_copy(update={"batch": 4})
    artifact = OpenVinoRuntime().lower(made, torch.zeros(1, 10), target, tmp_path / "model.onnx")
    samples = torch.linspace(-1, 1, 40).reshape(4, 10)
    with torch.no_grad():
        expected = made.model(samples).numpy()
    found = OpenVinoRuntime().load(artifact.path, target).run({"input": samples.numpy()})["output"]
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


HALF = LayerPolicy(16, 16)
LIMIT = "ONEDNN_MAX_CPU_ISA"
"""Environment variable: the most of the processor's instructions that oneDNN, and so OpenVINO, uses."""


@pytest.mark.parametrize(
    ("layers", "reported"),
    [
        ({"conv1": HALF, "conv2": HALF, "fc": HALF}, True),
        ({"conv1": LayerPolicy(8, 8), "conv2": HALF, "fc": HALF}, True),
        ({"conv1": HALF, "conv2": HALF}, False),  # one is left in float32
        ({"conv1": HALF, "conv2": HALF, "fc": LayerPolicy(16, 32)}, False),
        ({"conv1": LayerPolicy(8, 8), "conv2": LayerPolicy(8, 8), "fc": LayerPolicy(8, 8)}, False),
    ],
)
def test_bfloat16_is_asked_for_where_every_layer_wants_it_and_the_cpu_has_it(
    layers, reported, make_network, candidate, tmp_path, monkeypatch
):
    made = candidate(make_network("signal"), layers)
    target = load_target("cpu-openvino")
    artifact = OpenVinoRuntime().lower(made, torch.zeros(1, 2, 20), target, tmp_path / "model.onnx")
    model = openvino.Core().read_model(artifact.path)
    assert model.has_rt_info(PRECISION) == reported
    for capable in (False, True):
        computed = ("float32", "bfloat16") if capable else ("float32",)
        monkeypatch.setattr(openvino_runtime, "computes", computed.__contains__)
        assert openvino_runtime._precision(model) == ("bfloat16" if reported and capable else "float32")


def test_a_file_in_bfloat16_runs_where_the_kernels_are_limited_to_less_than_the_cpu_has(
    make_network, candidate, tmp_path
):
    """OpenVINO's list of capabilities goes by the processor alone."""
    made = candidate(make_network("signal"), dict.fromkeys(("conv1", "conv2", "fc"), HALF))
    target = load_target("cpu-openvino")
    artifact = OpenVinoRuntime().lower(made, torch.zeros(1, 2, 20), target, tmp_path / "model.onnx")
    code = f"""
from pathlib import Path
from slimfront.hardware_profiles.runtimes.onnx.openvino_runtime import OpenVinoRuntime
from slimfront.hardware_profiles.cards.target import load_target
session = OpenVinoRuntime().load(Path({str(artifact.path)!r}), load_target("cpu-openvino"))
print(set(session.executed_precisions().values()))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {LIMIT: "AVX2"}, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "{'f32'}", ran.stderr


@pytest.mark.skipif(
    "avx512f" not in machine()["flags"] or "AVX512" not in os.environ.get(LIMIT, "AVX512"),
    reason="OpenVINO computes in bfloat16 from AVX-512 on",
)
def test_a_layer_in_bfloat16_reads_and_makes_such_numbers(make_network, candidate, inputs, tmp_path):
    network = make_network("signal")
    made = candidate(network, {"fc": HALF})
    target = load_target("cpu-openvino").model_copy(update={"batch": 40})
    artifact = OpenVinoRuntime().lower(made, torch.zeros(1, 2, 20), target, tmp_path / "model.onnx")
    samples = inputs(network.shape, 40, 1)
    found = torch.from_numpy(
        OpenVinoRuntime().load(artifact.path, target).run({"input": samples.numpy()})["output"].copy()
    )
    with torch.no_grad():
        exact = network(samples)
    assert torch.equal(found, found.bfloat16().float())
    # OpenVINO 2026.4 on a CPU without bfloat16 truncates half of what it should round up: by a step instead of a half.
    assert (found - exact).abs().max() <= 3 * 2**-8 * exact.abs().max()
    exactly = OnnxRuntime().load(artifact.path, target).run({"input": samples.numpy()})["output"]
    assert np.abs(exactly - exact.numpy()).max() <= 2 * 2**-8 * float(exact.abs().max())


def test_integers_next_to_floats_in_the_runtimes_default(make_network, candidate, tmp_path):
    made = candidate(make_network("residual"), {"stem": LayerPolicy(8, 8), "blocks.0.conv1": LayerPolicy(8, 8)})
    runtime, target = OpenVinoRuntime(), load_target("cpu-openvino")
    made = replace(made, policy=replace(made.policy, float_precision="default"))
    artifact = runtime.lower(made, torch.zeros(1, *made.model.shape), target, tmp_path / "model.onnx")
    floats = {"float32": "f32", "bfloat16": "bf16"}[runtime.default_float_precision(target)]
    assert Counter(runtime.load(artifact.path, target).executed_precisions().values()) == {"i8": 2, floats: 4}


class SelfAttention(nn.Module):
    """Multiplies two computed tensors, twice, next to its layers."""

    shape = (5, 12)

    def __init__(self) -> None:
        super().__init__()
        self.joint = nn.Linear(12, 36)
        self.mix = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(nn.functional.scaled_dot_product_attention(*self.joint(x).chunk(3, -1)).mean(1))


@pytest.mark.parametrize("products", [False, True], ids=["layers only", "attention"])
def test_what_integers_leave_in_float_is_float32_unless_it_multiplies(products, make_network, candidate, tmp_path):
    model = SelfAttention().eval() if products else make_network("residual")
    example = torch.zeros(1, *model.shape)
    made = candidate(model, {layer.name: LayerPolicy(8, 8) for layer in find_layers(model, example)})
    made = replace(made, policy=replace(made.policy, float_precision="default"))
    artifact = OpenVinoRuntime().lower(made, example, load_target("cpu-openvino"), tmp_path / "model.onnx")
    noted = {entry.key: entry.value for entry in onnx.load(artifact.path).metadata_props}
    assert noted.get(PRECISION[1], "float32") == ("default" if products else "float32")


def test_a_float_file_in_the_default_precision_is_compiled_without_a_setting_of_ours(
    make_network, tmp_path, monkeypatch
):
    model = make_network("residual")
    made = Candidate(Policy(float_precision="default"), model)
    runtime, target = OpenVinoRuntime(), load_target("cpu-openvino")
    artifact = runtime.lower(made, torch.zeros(1, *model.shape), target, tmp_path / "model.onnx")
    session = runtime.load(artifact.path, target)
    plain = shared_core().compile_model(str(artifact.path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    assert kinds_of(session._compiled) == kinds_of(plain)
    inputs = np.ones((1, *model.shape), np.float32)
    np.testing.assert_array_equal(session.run({"input": inputs})["output"], plain(inputs)[0])


def test_an_interrupt_after_sessions_that_overlapped_is_an_interrupt(make_network, tmp_path):
    """In a process of its own: where the stack of its signal handlers is freed memory, a signal ends it."""
    model = make_network("residual")
    made = Candidate(Policy(float_precision="default"), model)
    path = tmp_path / "model.onnx"
    OpenVinoRuntime().lower(made, torch.zeros(1, *model.shape), load_target("cpu-openvino"), path)
    script = f"""
import signal
from pathlib import Path
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
signal.signal(signal.SIGINT, signal.default_int_handler)
runtime, target = get_runtime("openvino"), load_target("cpu-openvino")
reference, candidate = (runtime.load(Path({str(path)!r}), target) for _ in range(2))
del reference
del candidate
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def kinds_of(compiled: openvino.CompiledModel) -> Counter:
    """(kind, precision) of all operations as they run."""
    keys = ("layerType", "runtimePrecision", "primitiveType")
    executed = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    return Counter(tuple(information[key].astype(str) for key in keys) for information in executed)


@pytest.mark.parametrize("capable", [False, True])
def test_a_precision_that_the_processor_lacks_is_float32(capable, make_network, tmp_path, monkeypatch):
    made = Candidate(Policy(float_precision="float16"), make_network("signal"))
    target = load_target("cpu-openvino")
    artifact = OpenVinoRuntime().lower(made, torch.zeros(1, 2, 20), target, tmp_path / "model.onnx")
    computed = ("float32", "float16") if capable else ("float32",)
    monkeypatch.setattr(openvino_runtime, "computes", computed.__contains__)
    model = openvino.Core().read_model(artifact.path)
    assert openvino_runtime._precision(model) == ("float16" if capable else "float32")


def test_openvino_sends_no_usage_statistics() -> None:
    code = (
        "import sys, slimfront.hardware_profiles.runtimes.onnx.openvino_runtime;"
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "openvino.tools.ovc.telemetry_stub\n"
