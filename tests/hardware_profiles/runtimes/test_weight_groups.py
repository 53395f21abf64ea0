"""Weights with scales by groups of inputs: what runtimes make of them is what the simulation says, at any shape."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.compression.folding import fold_norms
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.quantization.fake_quantize import fake_quantized
from slimfront.core.errors import CompressionError, LoweringError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import Session, get_runtime
from slimfront.hardware_profiles.runtimes.registry import RUNTIMES
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.quantization_scheme import Scheme
from torch import Tensor, nn

BATCH = 5
HERE = [name for name, entry in RUNTIMES.items() if entry.weight_groups and not entry.gpu]
GRIDS = ("symmetric", "affine")


class Odd(nn.Module):
    """Linear layers of odd and of even widths, one that runs twice, with and without a bias or a batch-norm: [n, 100] to [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(100, 33), nn.BatchNorm1d(33)
        self.second = nn.Linear(33, 128, bias=False)
        self.tokens, self.fc = nn.Linear(128, 128), nn.Linear(128, 10)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.second(self.norm(self.first(x)).relu())
        tokens = torch.stack([wide, -wide], 1)
        return self.fc(self.tokens(self.tokens(tokens).relu()).mean(1))


LAYERS = ("first", "second", "tokens", "fc")


def samples(count: int) -> Tensor:
    return torch.randn(count, 100, generator=torch.Generator().manual_seed(1))


def grouped(bits: int, size: int, grids: str = "symmetric", layers: tuple[str, ...] = LAYERS) -> Candidate:
    policy = Policy(
        layers=dict.fromkeys(layers, LayerPolicy(bits, weight_group_size=size)), scheme=Scheme(group_grids=grids)
    )
    return make_candidate(Odd().eval(), samples(1), policy, [(sample, 0) for sample in samples(20)])


def simulated(candidate: Candidate, inputs: Tensor) -> np.ndarray:
    model = Odd().eval()
    fold_norms(model, candidate.quantization.norms)
    with torch.no_grad(), fake_quantized(model, candidate.policy, {}):
        return model(inputs).numpy()


def loaded(runtime: str, candidate: Candidate, folder: Path) -> tuple[Session, int]:
    lowered = get_runtime(runtime)
    target = load_target(f"cpu-{runtime}").model_copy(update={"batch": BATCH, "threads": 1})
    artifact = lowered.lower(candidate, samples(1), target, folder / f"model{lowered.suffix}")
    return lowered.load(artifact.path, target), artifact.bytes


@pytest.mark.parametrize("runtime", HERE)
def test_an_artifact_computes_what_the_simulation_does_at_any_bits_size_and_shape(runtime, tmp_path):
    inputs = samples(BATCH)
    for bits, size, grids in product((4, 8), (32, 64, 128), GRIDS):
        made = grouped(bits, size, grids)
        session, _ = loaded(runtime, made, tmp_path)
        expected = simulated(made, inputs)
        np.testing.assert_allclose(
            session.run({"input": inputs.numpy()})["output"], expected, atol=1e-5 * np.abs(expected).max()
        )


@pytest.mark.parametrize("runtime", HERE)
def test_files_shrink_with_the_bits(runtime, tmp_path):
    """Of layers that the groups divide: integers of 4 bits are packed two to a byte."""
    layers = ("tokens",)
    _, four = loaded(runtime, grouped(4, 64, layers=layers), tmp_path)
    _, eight = loaded(runtime, grouped(8, 64, layers=layers), tmp_path)
    weights = 128 * 128
    assert 0.8 < (eight - four) / (weights / 2) < 1.3  # operations take bytes too


def test_the_precision_is_that_of_the_kernel_where_there_is_one(tmp_path):
    """OpenVINO dequantizes groups that do not divide their layer when it loads a file; 8 bits compute as floats everywhere."""
    reported = {}
    for runtime, bits in product(("openvino", "onnxruntime", "torch"), (4, 8)):
        session, _ = loaded(runtime, grouped(bits, 64), tmp_path)
        reported[runtime, bits] = session.executed_precisions()
    assert reported["openvino", 4] == {"first": "f32", "second": "f32", "tokens": "u4", "fc": "u4"}
    assert reported["onnxruntime", 4] == dict.fromkeys(LAYERS, "u4")
    assert reported["torch", 4] == {"first": "f32", "second": "f32", "tokens": "u4", "fc": "f32"}
    for runtime in ("openvino", "onnxruntime", "torch"):
        assert reported[runtime, 8] == dict.fromkeys(LAYERS, "f32")


def test_packed_kernels_compile_ahead_of_time(tmp_path):
    runtime, inputs = get_runtime("torch"), samples(BATCH)
    target = load_target("cpu-torch").model_copy(update={"batch": BATCH, "threads": 1, "options": {"compile": True}})
    made = grouped(4, 32, "affine")
    session = runtime.load(runtime.lower(made, samples(1), target, tmp_path / "model.pt2").path, target)
    expected = simulated(made, inputs)
    np.testing.assert_allclose(
        session.run({"input": inputs.numpy()})["output"], expected, atol=1e-5 * np.abs(expected).max()
    )
    assert session.executed_precisions()["tokens"] == "u4"


def test_a_runtime_without_groups_and_a_layer_that_is_not_linear_are_refused(tmp_path):
    with pytest.raises(LoweringError, match="weight_group_size"):
        loaded("litert", grouped(4, 32), tmp_path)
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    policy = Policy(layers={"0": LayerPolicy(4, weight_group_size=32)})
    with pytest.raises(CompressionError, match="'0' is not linear"):
        make_candidate(network, torch.zeros(1, 3, 8, 8), policy, [(torch.zeros(3, 8, 8), 0)])
