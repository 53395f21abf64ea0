"""Equalisation, bias correction and adaptive rounding: by hand, and what each may not change."""

import copy

import numpy as np
import pytest
import torch
from slimfront.compression.quantization import adaround
from slimfront.compression.quantization.adaround import rounded
from slimfront.compression.quantization.bias_correction import correct_biases
from slimfront.compression.quantization.equalize import equalize
from slimfront.compression.quantization.fake_quantize import fake_quantized
from slimfront.compression.quantization.quantize import quantize
from slimfront.compression.quantization.weight_grids import SymmetricWeight
from slimfront.compression.recovery.post_training import POST_TRAINING, calibrated
from slimfront.compression.recovery.recover import recover
from slimfront.core.errors import CompressionError, PolicyError
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.quantization_scheme import Scheme
from slimfront.spaces.policies.recovery import POST_TRAINING as STEPS
from slimfront.workloads.cache import state_digest
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset


class Network(nn.Module):
    """Pairs: conv1 and the depthwise conv2, conv2 and conv3, conv3 and fc1; a shortcut around fc2 keeps it out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.conv3 = nn.Conv2d(6, 12, 2, groups=6), nn.Conv2d(12, 4, 1)
        self.fc1, self.fc2 = nn.Linear(16, 5), nn.Linear(5, 5)
        self.norm.running_var.uniform_(0.01, 4)
        self.norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.norm(self.conv1(x)).relu()).relu()
        x = self.fc1(functional.max_pool2d(self.conv3(x), 2).flatten(1)).relu()
        return x + self.fc2(x)


def task(model: nn.Module | None = None) -> Workload:
    inputs = torch.randn(40, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(40, dtype=torch.long)
    data = TensorDataset(inputs, labels)
    return Workload((model or Network()).eval(), data, data, data, data, inputs[:1])


LAYERS = {name: LayerPolicy(3, 8) for name in ("conv1", "conv2", "conv3", "fc1", "fc2")}


def test_equalising_changes_ranges_by_hand_and_no_output():
    workload = task()
    model, inputs = workload.model, workload.train.tensors[0]
    with torch.no_grad():
        expected = model(inputs)
        POST_TRAINING["equalize"](model, workload, Policy(), 0)
        torch.testing.assert_close(model(inputs), expected)
    assert equalize(model, inputs[:1]) == [("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "fc1")]
    made, read = model.conv3.weight.abs().amax((1, 2, 3)), model.fc1.weight.view(5, 4, 4).abs().amax((0, 2))
    torch.testing.assert_close(made, read, rtol=1e-3, atol=0)


def test_two_linear_layers_by_hand():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([4.0, 3.0]))
        model[2].weight.copy_(torch.tensor([[2.0, -9.0]]))
    assert equalize(model, torch.zeros(1, 1)) == [("0", "2")]  # divided by sqrt(8 / 2) = 2 and sqrt(1 / 9) = 1/3
    torch.testing.assert_close(model[0].weight.detach(), torch.tensor([[4.0], [3.0]]))
    torch.testing.assert_close(model[0].bias.detach(), torch.tensor([2.0, 9.0]))
    torch.testing.assert_close(model[2].weight.detach(), torch.tensor([[4.0, -3.0]]))


def test_bias_correction_takes_the_mean_error_by_hand():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.4]]))  # of steps of 1: 0.4 becomes 0
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    correct_biases(model, Policy(layers={"0": LayerPolicy(2)}), {}, TensorDataset(inputs, torch.zeros(2)))
    torch.testing.assert_close(model[0].bias.detach(), torch.tensor([0.4 * 3]))  # the mean of 2 and 4 is lost
    torch.testing.assert_close(model[0].weight.detach(), torch.tensor([[1.0, 0.4]]))


def test_adaptive_rounding_comes_near_the_best_of_all_roundings():
    torch.manual_seed(0)
    layer = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[7.0, 1.3, 2.45, 3.4, -0.65, 0.0]]))  # steps of 1
    read = 0.3 * (torch.randn(64, 1).abs() + 0.1 * torch.randn(64, 6))  # inputs that go together: errors should cancel
    expected = read @ layer.weight.detach().T
    levels = SymmetricWeight(4).levels(layer.weight.detach())
    found = rounded(layer, layer.weight.detach(), levels, read, expected, torch.Generator().manual_seed(0))
    tried = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    candidates = torch.cat([torch.full((16, 1), 7.0), torch.tensor([1.0, 2, 3, -1]) + tried, torch.zeros(16, 1)], 1)
    errors = ((read @ candidates.T - expected) ** 2).mean(0)
    own, nearest = (((read @ w.T - expected) ** 2).mean() for w in (found, layer.weight.detach().round()))
    assert found.flatten().tolist()[::5] == [7.0, 0.0]
    assert float(own) < 1.15 * float(errors.min())
    assert float(own) < 0.2 * float(nearest)


@pytest.mark.parametrize("scheme", ["channel", "tensor"])
def test_quantization_finds_the_weights_as_they_were_rounded(scheme, monkeypatch):
    monkeypatch.setattr(adaround, "STEPS", 30)
    workload = task()
    with torch.no_grad():
        workload.model.fc1.weight[:, ::2] = 0
    policy = Policy(layers=LAYERS, recovery=Recovery(steps=("prune", "adaround")), scheme=Scheme(weights=scheme))
    plain = quantize(workload.model, workload.example_input, policy, workload.calibration).weights
    model = recover(copy.deepcopy(workload.model), workload, policy, 0)
    for name, weight in quantize(model, workload.example_input, policy, workload.calibration).weights.items():
        scale = weight.grid.scale.reshape(-1, *[1] * (weight.integers.ndim - 1))
        np.testing.assert_allclose(weight.integers * scale, model.get_submodule(name).weight.detach(), atol=1e-6)
        np.testing.assert_allclose(weight.grid.scale, plain[name].grid.scale, rtol=1e-5)
        assert np.abs(weight.integers - plain[name].integers.astype(int)).max() <= 1
    assert (model.fc1.weight[:, ::2] == 0).all()


def error(model: nn.Module, workload: Workload, policy: Policy) -> float:
    """Mean squared difference of the quantized network's outputs from the float network's."""
    inputs = workload.train.tensors[0]
    model = copy.deepcopy(model)
    grids = calibrated(model, workload, policy)
    with torch.no_grad(), fake_quantized(model, policy, grids):
        return float(((model(inputs) - Network().eval()(inputs)) ** 2).mean())


@pytest.mark.parametrize("step", ["adaround", "correct_bias"])
def test_the_network_s_outputs_come_nearer_without_labels(step):
    workload = task()
    policy = Policy(layers=LAYERS, recovery=Recovery(steps=("prune", step)))
    before = error(workload.model, workload, policy)
    lies = TensorDataset(workload.train.tensors[0], torch.full((40,), 99))
    workload = Workload(workload.model, lies, lies, lies, lies, workload.example_input)
    assert error(recover(copy.deepcopy(workload.model), workload, policy, 0), workload, policy) < before


@pytest.mark.parametrize("step", STEPS)
def test_each_comes_back_from_json_and_follows_the_seed(step, monkeypatch):
    monkeypatch.setattr(adaround, "STEPS", 30)
    policy = Policy(layers=LAYERS, recovery=Recovery(steps=("prune", step)))
    assert Policy.from_json(policy.to_json()) == policy
    digests = [state_digest(recover(Network().eval(), task(), policy, seed).state_dict()) for seed in (0, 0)]
    assert digests[0] == digests[1]


def test_a_model_that_cannot_be_captured_is_reported_in_one_line():
    class Choosy(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(CompressionError, match=r"^torch\.export cannot capture the model: [^\n]+$"):
        equalize(Choosy(4, 4), torch.zeros(1, 4))


def test_without_epochs_only_what_reads_the_calibration_split_is_left():
    steps = ("prune", "equalize", "quantize", "train", "adaround")
    assert Policy(layers=LAYERS, recovery=Recovery(steps=steps)).recovery.steps == ("prune", "equalize", "adaround")
    assert Policy(layers=LAYERS, recovery=Recovery(2, steps=steps)).recovery.steps == steps
    assert Policy(recovery=Recovery(steps=steps)).is_uncompressed  # nothing is on a grid
    assert Policy(recovery=Recovery(2, steps=("prune", "adaround"))).is_uncompressed
    assert Policy(recovery=Recovery(2, steps=steps)).recovery.steps == ("prune", "quantize", "train")
    with pytest.raises(PolicyError, match="'adaround' is there 2 times"):
        Recovery(steps=("prune", "adaround", "adaround"))
