"""bfloat16: rounding by hand and as torch rounds, weights and activations of layers, sizes, and the same bits again."""

import copy
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from slimfront.compression.packing.packed_file import digest, load_packed, packed_bytes, save_packed, weights_of
from slimfront.compression.quantization.bfloat16 import rounded
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.quantization.fake_quantize import fake_quantized
from slimfront.compression.recovery.recover import recover
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset

SHAPE = (2, 6, 6)
HALF = LayerPolicy(16, 16)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(2, 8, 3, bias=False))
    model.add_module("norm", nn.BatchNorm2d(8))
    model.add_module("relu", nn.ReLU())
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(128, 4))
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


def made(model: nn.Module, **layers: LayerPolicy) -> Candidate:
    inputs = torch.randn(60, *SHAPE, generator=torch.Generator().manual_seed(0))
    return make_candidate(model, inputs[:1], Policy(layers=layers), TensorDataset(inputs, torch.zeros(60)))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.0, 1.0),
        (1 + 2**-8, 1.0),  # halfway between 1 and 1 + 2^-7: to the even one
        (1 + 3 * 2**-8, 1 + 2**-6),  # halfway between 1 + 2^-7 and 1 + 2^-6
        (1 + 2**-8 + 2**-20, 1 + 2**-7),
        (-(1 + 2**-8), -1.0),
        (math.pi, 3.140625),
        (3.3895e38, 3.3895313892515355e38),  # the largest there is: 2^128 - 2^120
        (0.0, 0.0),
    ],
)
def test_numbers_are_rounded_to_the_nearest_even_of_eight_bits(number, expected):
    assert rounded(torch.tensor(number)).item() == expected
    assert float(np.float32(number).astype(ml_dtypes.bfloat16)) == expected


def test_gradients_pass_straight_through():
    weight = torch.tensor([1 + 2**-9, 3.0], requires_grad=True)
    (rounded(weight) * torch.tensor([1 + 2**-12, 7.0])).sum().backward()
    assert weight.grad.tolist() == [1 + 2**-12, 7.0]


def test_a_layer_in_bfloat16_is_torchs_own(network):
    images = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), fake_quantized(network, Policy(layers={"fc": HALF}), {}):
        found = network(images)
    read: Tensor = network[:-1](images)
    weight = network.fc.weight.bfloat16()  # left so by `fake_quantized`
    sums = read.bfloat16().double() @ weight.double().T + network.fc.bias.double()
    # Sums are kept in float32, so that one on the edge of two numbers may go to the other one.
    steps = (found - sums.float().bfloat16().float()).abs() / sums.abs().float()
    assert steps.max() <= 2**-7
    assert (steps == 0).float().mean() > 0.95
    assert torch.equal(found, found.bfloat16().float())


def test_the_weight_is_rounded_once_batch_norm_is_folded(network):
    candidate = made(network, conv=HALF, fc=LayerPolicy(16))
    norm, conv = network.norm, candidate.quantization.bfloat16["conv"]
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = (network.conv.weight * factor[:, None, None, None]).bfloat16().float()
    bias = (norm.bias - norm.running_mean * factor).bfloat16().float()
    np.testing.assert_array_equal(conv.values.astype(np.float32), weight.detach().numpy())
    np.testing.assert_allclose(conv.bias, bias.detach().numpy(), rtol=2**-7)
    assert conv.bias.tolist() == torch.from_numpy(conv.bias).bfloat16().float().tolist()
    assert candidate.quantization.norms == {"conv": "norm"}
    np.testing.assert_array_equal(candidate.quantization.bfloat16["fc"].bias, network.fc.bias.detach().numpy())


def test_the_file_takes_two_bytes_a_weight_and_gives_the_weights_back(network, tmp_path):
    candidate = made(network, conv=HALF, fc=LayerPolicy(16))
    path = save_packed(candidate, tmp_path / "packed.safetensors")
    assert packed_bytes(path) == 2 * (8 * 18 + 4 * 128) + 4 * (8 + 4)  # biases in float32, the norm in its layer's
    back = load_packed(path)
    assert digest(back) == digest(weights_of(candidate))
    assert back["fc.weight"].dtype == np.float32
    np.testing.assert_array_equal(back["fc.weight"], network.fc.weight.detach().bfloat16().float().numpy())


def test_training_on_grids_trains_on_bfloat16_too(network):
    inputs = torch.randn(60, *SHAPE, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())
    workload = Workload(network, data, data, data, data, inputs[:1])
    policy = Policy(layers={"fc": HALF}, recovery=Recovery(2, 0.1, alpha=0.0, steps=("prune", "quantize", "train")))
    trained = recover(copy.deepcopy(network), workload, policy, 3)
    assert torch.equal(trained.fc.weight, trained.fc.weight.bfloat16().float())
    assert not torch.equal(trained.fc.weight, network.fc.weight.bfloat16().float())
