"""The packed file: it takes what is said, and gives back the very weights that the artifact computes with."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file
from slimfront.compression.packing.own_state import load_saved, saved_tensors
from slimfront.compression.packing.packed_file import (
    counted_bytes,
    digest,
    load_packed,
    packed_bytes,
    recorded_digest,
    save_packed,
    weights_of,
)
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import nn
from torch.utils.data import TensorDataset

SHAPE = (2, 4, 4)
EVERY_WAY = {
    "conv1": LayerPolicy(4, 8),
    "conv2": LayerPolicy(3, 32),
    "fc1": LayerPolicy(4, 32, codebook="k_means"),
    "fc2": LayerPolicy(16),
}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(2, 6, 3, padding=1, bias=False))
    model.add_module("norm1", nn.BatchNorm2d(6))
    model.add_module("conv2", nn.Conv2d(6, 8, 3, padding=1))
    model.add_module("norm2", nn.BatchNorm2d(8))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc1", nn.Linear(128, 16))
    model.add_module("norm3", nn.BatchNorm1d(16))
    model.add_module("fc2", nn.Linear(16, 8))
    model.add_module("fc3", nn.Linear(8, 4))
    for norm in (model.norm1, model.norm2, model.norm3):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


def made(model: nn.Module, **layers: LayerPolicy) -> Candidate:
    inputs = torch.randn(60, *SHAPE, generator=torch.Generator().manual_seed(0))
    return make_candidate(model, inputs[:1], Policy(layers=layers), TensorDataset(inputs, torch.zeros(60)))


def test_the_file_takes_what_is_counted_by_hand(network, tmp_path):
    path = save_packed(made(network, **EVERY_WAY), tmp_path / "packed.safetensors")
    bytes_ = {
        "conv1": math.ceil(6 * 18 * 4 / 8)
        + 4 * 6
        + 4 * 6
        + 4
        + 1,  # codes, steps, bias with its norm, grid of the input
        "conv2": math.ceil(8 * 54 * 3 / 8) + 4 * 8 + 4 * 8,
        "fc1": math.ceil(16 * 128 * 4 / 8) + 4 * 16 + 4 * 16 + 4 * 4 * 16,  # codes, table, bias, a norm of its own
        "fc2": 2 * 16 * 8 + 4 * 8,
        "fc3": 4 * (8 * 4 + 4),
    }
    found = load_file(path)
    for name, expected in bytes_.items():
        norm = {"fc1": "norm3."}.get(name, "none")
        assert sum(array.nbytes for key, array in found.items() if key.startswith((f"{name}.", norm))) == expected, name
    assert packed_bytes(path) == sum(bytes_.values()) == sum(array.nbytes for array in found.values())


def test_the_weights_come_back_as_the_artifact_holds_them(network, tmp_path):
    candidate = made(network, **EVERY_WAY)
    path = save_packed(candidate, tmp_path / "packed.safetensors")
    back = load_packed(path)
    assert digest(back) == recorded_digest(path) == digest(weights_of(candidate))
    artifact = get_runtime("onnxruntime").lower(
        candidate, torch.zeros(1, *SHAPE), load_target("cpu-onnxruntime"), tmp_path / "model.onnx"
    )
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(artifact.path).graph.initializer}
    for name in ("conv1", "conv2"):
        stem = next(
            key.removesuffix(".q")
            for key in held
            if key.endswith(".q") and held[key].shape == back[f"{name}.weight"].shape
        )
        real = held[f"{stem}.q"].astype(np.float32) * held[f"{stem}.scale"].reshape(-1, 1, 1, 1)
        assert np.array_equal(real, back[f"{name}.weight"])
        assert any(np.array_equal(back[f"{name}.bias"], array) for array in held.values())
    assert not {name for name in back if name.startswith(("norm1", "norm2"))}  # folded into the layer before them
    codes = candidate.quantization.codes["fc1"]
    assert np.array_equal(back["fc1.weight"], codes.values())
    assert np.array_equal(back["norm3.running_var"], network.norm3.running_var.numpy())
    assert np.array_equal(back["fc2.weight"], candidate.model.fc2.weight.detach().bfloat16().float().numpy())


def test_what_is_counted_is_what_the_file_takes(network, tmp_path):
    for layers in (EVERY_WAY, {**EVERY_WAY, "fc3": LayerPolicy(16, 16), "conv2": LayerPolicy(5, 6)}, {}):
        candidate = made(network, **layers)
        assert counted_bytes(candidate) == packed_bytes(save_packed(candidate, tmp_path / "packed.safetensors"))


def test_before_grids_are_known_it_is_counted_to_what_the_graph_decides(digits_workload, tmp_path):
    model, example = digits_workload.model, digits_workload.example_input
    layers = [layer.name for layer in find_layers(model, example)]
    policy = Policy(layers=dict.fromkeys(layers, LayerPolicy(8, 8)))
    candidate = make_candidate(model, example, policy, digits_workload.calibration)
    file = packed_bytes(save_packed(candidate, tmp_path / "packed.safetensors"))
    assert counted_bytes(candidate) == file
    early, quantization = counted_bytes(Candidate(policy, model)), candidate.quantization
    # Batch-norm's four numbers a channel become a bias; its convolutions have none of their own.
    folded = sum(12 * model.get_submodule(norm).num_features for norm in quantization.norms.values())
    assert folded > 0
    assert early - file == folded - 5 * len(quantization.additions)
    assert 0 < early - file < 0.1 * file


def test_an_uncompressed_model_comes_back_whole(network, tmp_path):
    back = load_packed(save_packed(Candidate(Policy(), network), tmp_path / "packed.safetensors"))
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items() if "num_batches" not in name}
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], state[name]) for name in state)


class SharedTwice(nn.Sequential):
    """One layer at two places, and a buffer that is a part of another."""

    def __init__(self) -> None:
        layer = nn.Linear(5, 5)
        super().__init__(layer, nn.ReLU(), layer)
        self.register_buffer("steps", torch.arange(12.0))
        self.register_buffer("first", self.steps[:5])


def test_a_layer_at_two_places_is_stored_once(tmp_path):
    model, other = SharedTwice(), SharedTwice()
    candidate = make_candidate(model, torch.zeros(1, 5), Policy(), TensorDataset(torch.zeros(4, 5), torch.zeros(4)))
    packed = save_packed(candidate, tmp_path / "packed.safetensors")
    assert packed_bytes(packed) == counted_bytes(candidate) == 4 * (25 + 5 + 12 + 5)
    save_file(saved_tensors(model), tmp_path / "weights.safetensors")
    load_saved(other, load_torch_file(tmp_path / "weights.safetensors"))
    assert all(torch.equal(own, model.state_dict()[name]) for name, own in other.state_dict().items())
    with pytest.raises(RuntimeError, match=r"weights of another model: .*'2\.bias'"):
        load_saved(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)), saved_tensors(model))


def test_masked_weights_take_a_bit_each(network, tmp_path):
    with torch.no_grad():
        network.fc1.weight[:, ::2] = 0
    dense, sparse = (
        packed_bytes(save_packed(made(network, fc1=layer), tmp_path / "packed.safetensors"))
        for layer in (LayerPolicy(8), LayerPolicy(4, codebook="power_of_two"))
    )
    codes = load_packed(tmp_path / "packed.safetensors")["fc1.weight"]
    assert (codes[:, ::2] == 0).all()
    # Both a bitmap; 1024 weights of 8 and of at most 4 bits, 16 steps, 15 values, and a norm that stays next to codes.
    assert sparse <= dense - (1024 // 2 + 4 * 16 - 4 * 15 - 4 * 4 * 16)


def test_what_was_changed_has_another_digest(network, tmp_path):
    path = save_packed(made(network, conv1=LayerPolicy(4, 8)), tmp_path / "packed.safetensors")
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    assert digest(load_packed(path)) != recorded_digest(path)
