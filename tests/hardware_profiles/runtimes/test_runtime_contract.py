"""What every runtime has to do: the file it is given computes what the candidate says, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Hashable
from importlib import metadata
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from slimfront.compression.quantization.quantize import quantize
from slimfront.core.errors import LoweringError, TargetError
from slimfront.hardware_profiles.cards.target import Target, load_target
from slimfront.hardware_profiles.runtimes import base as runtime_module
from slimfront.hardware_profiles.runtimes.base import Artifact, Runtime, computed_types, get_runtime
from slimfront.hardware_profiles.runtimes.onnx import openvino_runtime
from slimfront.hardware_profiles.runtimes.registry import RUNTIMES, runtimes
from slimfront.hardware_profiles.runtimes.torch.runtime import computes_bfloat16
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.quantization_scheme import Scheme
from torch import Tensor, nn

CARDS = {"tensorrt": "gpu-tensorrt", "torch-cuda": "gpu-torch"}
"""Runtime -> its shipped card, where that is not named after a CPU and the runtime."""

PACKAGES = {"litert": "ai_edge_litert", "torch-cuda": "torch"}
"""Runtime -> the package imported for it, where it is called otherwise."""

EAGER = ("torch", "torch-cuda")
"""Runtimes that simulate grids in float32."""

SHORT = {"float32": "f32", "tfloat32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""Float precision -> what sessions report."""

BATCH = 50
SAMPLES = 200
CONVOLUTIONS = {"stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"}
MIXED = {
    "stem": LayerPolicy(8, 8),
    "blocks.0.conv1": LayerPolicy(4, 8),
    "blocks.0.conv2": LayerPolicy(8, 4),
    "blocks.1.conv1": LayerPolicy(32, 8),
    "blocks.1.conv2": LayerPolicy(16, 32),
    "fc": LayerPolicy(6, 6),
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in EAGER else ()) for name in runtimes()])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    try:
        return get_runtime(request.param)
    except TargetError as reason:  # no GPU, or no package for it
        pytest.skip(str(reason))


@pytest.fixture
def scheme(runtime: Runtime) -> Scheme:
    """What kind of grids the runtime takes."""
    return Scheme(activations="symmetric") if runtime.name == "tensorrt" else Scheme()


@pytest.fixture
def candidate(candidate: Callable[..., Candidate], scheme: Scheme) -> Callable[..., Candidate]:
    return lambda model, layers: candidate(model, layers, scheme)


@pytest.fixture(autouse=True)
def some_networks_for_torch(request: pytest.FixtureRequest, runtime: Runtime) -> None:
    chosen = getattr(request.node, "callspec", None) and request.node.callspec.params.get("network")
    if runtime.name in EAGER and chosen not in (None, "residual", "heads", "additions"):
        pytest.skip("torch takes a second to export a candidate")


@pytest.fixture(autouse=True)
def bits_the_runtime_takes(request: pytest.FixtureRequest, runtime: Runtime) -> None:
    bits = getattr(request.node, "callspec", None) and request.node.callspec.params.get("bits")
    entry = RUNTIMES[runtime.name]
    if isinstance(bits, tuple) and (bits[0] not in entry.weight_bits or bits[1] not in entry.activation_bits):
        pytest.skip(f"{runtime.name} takes no {bits} bits")


@pytest.fixture
def target(runtime: Runtime) -> Target:
    return load_target(CARDS.get(runtime.name, f"cpu-{runtime.name}")).model_copy(update={"batch": BATCH})


@pytest.fixture
def lowered(runtime: Runtime, target: Target, tmp_path: Path) -> Callable[..., Artifact]:
    def make(candidate: Candidate, batch: int = BATCH) -> Artifact:
        at = target.model_copy(update={"batch": batch})
        return runtime.lower(candidate, torch.zeros(1, *candidate.model.shape), at, tmp_path / f"model{runtime.suffix}")

    return make


def everywhere(model: nn.Module, *bits: int) -> dict[str, LayerPolicy]:
    return {layer.name: LayerPolicy(*bits) for layer in find_layers(model, torch.zeros(1, *model.shape))}


def run(runtime: Runtime, artifact: Artifact, target: Target, inputs: Tensor) -> np.ndarray:
    session = runtime.load(artifact.path, target)
    return np.concatenate([np.array(session.run({"input": batch.numpy()})["output"]) for batch in inputs.split(BATCH)])


@pytest.fixture(scope="module")
def once() -> Callable[..., Any]:
    """(key, function) -> what the function gives; seconds of work that all runtimes share are done for the first of them."""
    known: dict[Hashable, Any] = {}

    def compute(key: Hashable, function: Callable[[], Any]) -> Any:
        if key not in known:
            known[key] = function()
        return known[key]

    return compute


def integers(runtime: Runtime) -> str:
    """What a quantized layer runs in: eagerly, torch only simulates grids."""
    return "f32" if runtime.name in EAGER else "i8"


def multiplies_bfloat16(runtime: Runtime) -> bool:
    """Whether `runtime` computes layers of 16 bits in bfloat16 on this machine."""
    if runtime.name == "openvino":
        return openvino_runtime.computes("bfloat16")
    return runtime.name in EAGER and computes_bfloat16(torch.device(runtime.device))


def agrees(outputs: np.ndarray, expected: np.ndarray, bits: int) -> None:
    """Within steps of a grid of `bits` over the outputs.

    Runtimes round in other places than torch, which moves a number on the edge of two steps to the other one, and what
    is computed from it. Samples whose two best are that close may swap them.
    """
    step = np.ptp(expected) / (2**bits - 1)
    errors = np.abs(outputs - expected)
    assert errors.max() <= 2 * step
    assert errors.mean() <= 0.5 * step
    first, second = np.sort(expected, axis=1)[:, [-1, -2]].T
    clear = first - second > 2 * step
    assert (outputs.argmax(1) == expected.argmax(1))[clear].all()


def test_an_artifact_describes_its_file(lowered, make_network, candidate):
    artifact = lowered(candidate(make_network("residual"), {}))
    content = artifact.path.read_bytes()
    assert artifact.path.is_absolute()
    assert artifact.bytes == len(content)
    travelled = pickle.dumps(artifact)
    artifact.path.write_bytes(b"written anew")
    assert pickle.loads(travelled).sha256 == artifact.sha256 == hashlib.sha256(content).hexdigest()


def test_an_uncompressed_candidate_computes_what_the_model_does(network, runtime, target, lowered, candidate, inputs):
    samples = inputs(network.shape, SAMPLES, 1)
    outputs = run(runtime, lowered(candidate(network, {})), target, samples)
    with torch.no_grad():
        expected = network(samples).numpy()
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (8, 4), (4, 32), (16, 32), (32, 8), (16, 8), (16, 16)], ids=str)
def test_a_quantized_candidate_computes_what_torchao_converts(
    bits, network, runtime, target, lowered, candidate, scheme, inputs, once, converted, needs_exact_products
):
    if bits == (8, 8):
        needs_exact_products(runtime.name)
    if runtime.name in EAGER and bits not in ((8, 8), (16, 8), (16, 16)):
        pytest.skip("takes seconds to export, for code that the other bits run too")
    samples = inputs(network.shape, SAMPLES, 1)

    def prepare() -> tuple[Candidate, np.ndarray]:
        made = candidate(network, everywhere(network, *bits))
        return made, converted(made, samples, inputs(network.shape, 100, 0))

    made, expected = once((type(network), bits, scheme), prepare)
    # Grids are calibrated on weights before they are rounded to bfloat16, which the oracle does the other way round.
    agrees(run(runtime, lowered(made), target, samples), expected, 7 if 16 in bits else min(8, *bits))


def test_every_layer_may_have_its_own_bits(runtime, target, lowered, candidate, inputs, make_network, converted):
    made = candidate(make_network("residual"), MIXED)
    samples = inputs(made.model.shape, SAMPLES, 1)
    outputs = run(runtime, lowered(made), target, samples)
    agrees(outputs, converted(made, samples, inputs(made.model.shape, 100, 0)), 4)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (8, 4), (4, 32), (16, 32)], ids=str)
def test_the_digits_are_distinguished_as_by_the_converted_model(
    bits, runtime, target, digits_workload, scheme, tmp_path, once, converted, needs_exact_products
):
    if bits == (8, 8):
        needs_exact_products(runtime.name)
    model, example = digits_workload.model, digits_workload.example_input
    samples = digits_workload.validation.tensors[0][:SAMPLES]

    def prepare() -> tuple[Candidate, np.ndarray]:
        policy = Policy(layers={layer.name: LayerPolicy(*bits) for layer in find_layers(model, example)}, scheme=scheme)
        made = Candidate(policy, model, quantize(model, example, policy, digits_workload.calibration))
        return made, converted(made, samples, digits_workload.calibration.tensors[0])

    made, expected = once(("digits", bits, scheme), prepare)
    artifact = runtime.lower(made, example, target, tmp_path / f"model{runtime.suffix}")
    outputs = run(runtime, artifact, target, samples)
    step = np.ptp(expected) / (2 ** min(8, *bits) - 1)
    assert np.abs(outputs - expected).max() <= step
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > step  # a sample whose two best classes are nearer than that is decided by rounding
    assert clear.mean() >= 0.9
    assert (outputs.argmax(1) == expected.argmax(1))[clear].all()


def test_every_float_precision_runs_in_the_type_it_says(runtime, target, lowered, inputs, make_network):
    model = make_network("residual")
    samples = inputs(model.shape, BATCH, 1)
    with torch.no_grad():
        expected = model(samples).numpy()
    types = computed_types(runtime, target)
    assert "default" not in types.values()
    offered = runtime.float_precisions(target)
    assert len({types[precision] for precision in offered}) == len(offered), "they are different computations"
    assert types[offered[0]] == runtime.default_float_precision(target)
    for precision, kind in types.items():
        artifact = lowered(Candidate(Policy(float_precision=precision), model))
        session = runtime.load(artifact.path, target)
        assert set(session.executed_precisions().values()) == {SHORT[kind]}
        signature = runtime.signature(artifact.path)
        assert [info.dtype for info in (*signature.inputs, *signature.outputs)] == ["float32", "float32"]
        agrees(session.run({"input": samples.numpy()})["output"], expected, 16 if kind == "float32" else 7)


def test_a_batch_is_its_samples_one_by_one(network, runtime, target, lowered, candidate, inputs):
    made = candidate(network, everywhere(network, 8, 8))
    samples = inputs(network.shape, 6, 1).numpy()
    single = runtime.load(lowered(made, batch=1).path, target)
    one_by_one = np.concatenate([np.array(single.run({"input": sample[None]})["output"]) for sample in samples])
    together = np.array(runtime.load(lowered(made, batch=6).path, target).run({"input": samples})["output"])
    assert together.shape == (6, 4)
    np.testing.assert_allclose(together, one_by_one, atol=1e-5 * np.abs(one_by_one).max() + 1e-6)


def test_more_threads_compute_the_same(runtime, target, lowered, candidate, inputs, make_network):
    artifact = lowered(candidate(make_network("residual"), {}))
    samples = inputs((3, 8, 8), BATCH, 1).numpy()
    one, two = (
        np.array(runtime.load(artifact.path, target, threads).run({"input": samples})["output"]) for threads in (1, 2)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [(8, 8), (4, 8)], ids=str)
def test_quantized_convolutions_run_in_integers_by_the_runtimes_own_report(
    bits, runtime, target, lowered, candidate, make_network
):
    network = make_network("residual")
    report = runtime.load(lowered(candidate(network, everywhere(network, *bits))).path, target).executed_precisions()
    assert {layer: report[layer] for layer in CONVOLUTIONS} == dict.fromkeys(CONVOLUTIONS, integers(runtime))
    assert set(report) == CONVOLUTIONS | {"fc"}


@pytest.mark.parametrize("bits", [(32, 32), (16, 32), (4, 32), (32, 8), (16, 8), (16, 16)], ids=str)
def test_float_convolutions_run_in_float_by_the_runtimes_own_report(
    bits, runtime, target, lowered, candidate, make_network
):
    network = make_network("residual")
    report = runtime.load(lowered(candidate(network, everywhere(network, *bits))).path, target).executed_precisions()
    expected = "bf16" if bits == (16, 16) and multiplies_bfloat16(runtime) else "f32"
    assert {layer: report[layer] for layer in CONVOLUTIONS} == dict.fromkeys(CONVOLUTIONS, expected)


@pytest.mark.parametrize(("name", "bits"), [("tokens", 8), ("heads", 4)])
def test_linear_layers_of_integer_weights_compute_in_float_where_nothing_else_was_decided(
    name, bits, runtime, target, lowered, candidate, inputs, make_network, converted
):
    network = make_network(name)
    made = candidate(network, everywhere(network, bits, 32))
    samples = inputs(network.shape, SAMPLES, 1)
    artifact = lowered(made)
    expected = converted(made, samples, inputs(network.shape, 100, 0))
    outputs = run(runtime, artifact, target, samples)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    report = runtime.load(artifact.path, target).executed_precisions()
    assert report == dict.fromkeys(made.policy.layers, "f32")


def test_every_layer_of_an_uncompressed_model_is_reported(network, runtime, target, lowered, candidate):
    report = runtime.load(lowered(candidate(network, {})).path, target).executed_precisions()
    assert report == {layer.name: "f32" for layer in find_layers(network, torch.zeros(1, *network.shape))}


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
import numpy as np
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.cards.target import load_target
folder, name = Path(sys.argv[1]), sys.argv[2]
session = get_runtime(name).load(next(folder.glob("model.*")), load_target(sys.argv[3]))
np.save(folder / "outputs.npy", session.run({"input": np.load(folder / "inputs.npy")})["output"])
loaded = {module.partition(".")[0] for module in sys.modules}
print(json.dumps({"precisions": session.executed_precisions(), "loaded": sorted(loaded & {"torch", "torchao", "ray", "optuna"})}))
"""


def test_an_artifact_runs_in_a_fresh_process_without_torch(
    runtime, target, lowered, candidate, inputs, make_network, tmp_path
):
    network = make_network("residual")
    artifact = lowered(candidate(network, everywhere(network, 8, 8)))
    samples = inputs(network.shape, BATCH, 1)
    np.save(tmp_path / "inputs.npy", samples.numpy())
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path), runtime.name, target.name]
    reported = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout)
    assert reported["loaded"] == (["torch"] if runtime.name in (*EAGER, "tensorrt") else [])
    assert reported["precisions"] == runtime.load(artifact.path, target).executed_precisions()
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), run(runtime, artifact, target, samples))


def with_an_unknown_operation(content: bytes) -> bytes:
    if content[4:8] == b"TFL3":  # a TensorFlow Lite file, whose operations are numbers
        model = schema.ModelT.InitFromPackedBuf(content)
        model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = (
            schema.BuiltinOperator.CUSTOM
        )
        model.operatorCodes[0].customCode = "Vnoc"
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
    return content.replace(b"Conv", b"Vnoc").replace(b"conv2d", b"vnoc2d")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"no model at all" * 20,
        lambda content: content[: len(content) // 2],
        with_an_unknown_operation,
        None,
    ],
    ids=["empty", "garbage", "truncated", "unknown operation", "missing"],
)
def test_a_file_that_cannot_be_loaded_is_reported_in_one_line(
    spoil, runtime, target, lowered, candidate, make_network, tmp_path
):
    path = tmp_path / f"spoiled{runtime.suffix}"
    if spoil:
        path.write_bytes(spoil(lowered(candidate(make_network("residual"), {})).path.read_bytes()))
    with pytest.raises(LoweringError, match=r"^\w+( \w+)? refuses spoiled\.\w+: .+$") as caught:
        runtime.load(path, target)
    assert "\n" not in str(caught.value)


def test_the_version_is_that_of_the_installed_package(runtime):
    assert metadata.version(PACKAGES.get(runtime.name, runtime.name)).startswith(runtime.version())
    assert runtime.version()[0].isdigit()


def test_a_runtime_that_is_not_installed_is_reported_with_what_to_install(runtime, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES.get(runtime.name, runtime.name), None)
    monkeypatch.delitem(sys.modules, type(runtime).__module__)
    install = re.escape(f"pip install '{RUNTIMES[runtime.name].install}'")
    with pytest.raises(
        TargetError, match=rf"^runtime '{runtime.name}' is not installed \(\w+ is missing\): {install}$"
    ):
        get_runtime(runtime.name)


def test_a_runtime_that_is_installed_but_broken_is_reported_in_one_line(monkeypatch):
    def broken(*_: object) -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file\nand more")

    monkeypatch.setattr(runtime_module, "import_module", broken)
    with pytest.raises(
        TargetError, match=r"^runtime 'openvino' is installed but cannot be loaded: libcuda\.so\.1: [^\n]+$"
    ):
        get_runtime("openvino")


def test_an_unknown_runtime_is_reported_with_the_known_ones():
    with pytest.raises(TargetError, match=r"^unknown runtime 'tensorflow'; known are (\w+, )*openvino"):
        get_runtime("tensorflow")
