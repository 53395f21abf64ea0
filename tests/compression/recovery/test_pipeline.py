"""Recovery pipelines: fake quantization, the order of steps, and every setting of recovery."""

import json

import numpy as np
import pytest
import torch
from slimfront.compression.folding import fold_norms
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.compression.quantization import adaround
from slimfront.compression.quantization.fake_quantize import fake_quantized
from slimfront.compression.quantization.quantize import folded_norms, quantize
from slimfront.compression.quantization.weight_grids import SymmetricWeight
from slimfront.compression.recovery.recover import recover
from slimfront.compression.recovery.synthetic import _gap, synthetic_inputs
from slimfront.core.errors import PolicyError
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.resolved import effective_policy
from slimfront.workloads.cache import state_digest
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset

AWARE = ("prune", "quantize", "train")
LAYERS = {name: LayerPolicy(4, 8) for name in ("0", "4")}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def task() -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 1, 4, 4, generator=generator)
    data = TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())
    return Workload(network(), data, data, data, data, inputs[:1])


def recovered(layers=LAYERS, **settings) -> nn.Module:
    workload = task()
    policy = Policy(layers=layers, recovery=Recovery(**{"epochs": 2, "learning_rate": 0.05, **settings}))
    return run(workload, policy, seed=3)


def run(workload: Workload, policy: Policy, seed: int) -> nn.Module:
    def prune(model: nn.Module) -> nn.Module:
        return pruned_copy(model, workload.example_input, policy, [], workload)

    return recover(prune(workload.model), workload, policy, seed, 16, prune)


def test_a_fake_quantized_weight_by_hand_and_its_gradient_straight_through():
    weight = torch.tensor([[0.7, -0.26, 0.04], [14.0, 6.9, -14.0]], requires_grad=True)
    rounded = SymmetricWeight(4)(weight)  # steps of 0.1 and 2
    torch.testing.assert_close(rounded, torch.tensor([[0.7, -0.3, 0.0], [14.0, 6.0, -14.0]]))
    rounded.sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones(2, 3))


def test_folding_batch_norm_changes_no_output():
    model, images = network(), torch.randn(5, 1, 4, 4)
    with torch.no_grad():
        expected = model(images)
        fold_norms(model, folded_norms(model, images[:1]))
        torch.testing.assert_close(model(images), expected)
    assert isinstance(model[1], nn.Identity)


def test_after_training_on_grids_quantization_finds_the_weights_as_they_were_trained():
    workload, model = task(), recovered(steps=AWARE)
    weights = quantize(model, workload.example_input, Policy(layers=LAYERS), workload.calibration).weights
    for name, weight in weights.items():
        real = weight.integers * weight.grid.scale.reshape(-1, *[1] * (weight.integers.ndim - 1))
        np.testing.assert_allclose(real, model.get_submodule(name).weight.detach().numpy(), atol=1e-6)
        assert abs(weight.integers).max() == 7


def test_fake_quantization_is_what_the_grids_say():
    workload, policy = task(), Policy(layers={"4": LayerPolicy(32, 4)})
    model, inputs = workload.model, workload.train.tensors[0]
    grids = quantize(model, workload.example_input, policy, workload.calibration).inputs
    read = model[:4](inputs)
    grid = grids["4"]
    integers = (read / float(grid.scale)).round() + int(grid.zero_point)
    expected = model[4]((integers.clamp(0, 15) - int(grid.zero_point)) * float(grid.scale))
    with torch.no_grad(), fake_quantized(model, policy, grids):
        torch.testing.assert_close(model(inputs), expected)
    torch.testing.assert_close(model(inputs), model[4](read))


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": AWARE},
        {"steps": ("quantize", "prune", "train")},
        {"steps": ("train", "prune", "train", "quantize", "train"), "epochs": 3},
        {"distiller": "hard"},
        {"distiller": "feature"},
        {"distiller": "relation"},
        {"distiller": "attention"},
        {"data": "unlabelled"},
        {"data": "synthetic"},
        {"mutual": True},
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"optimizer": "adamw"},
        {"patience": 1},
        {"accumulate": 2},
    ],
    ids=lambda settings: (
        "-".join(map(str, *settings.values())) if "steps" in settings and len(settings) == 1 else str(settings)
    ),
)
def test_every_setting_comes_back_from_json_changes_the_weights_and_follows_the_seed(settings):
    recovery = Recovery(2, 0.05, **{name: value for name, value in settings.items() if name != "epochs"})
    policy = Policy(recovery=recovery)
    assert Policy.from_json(policy.to_json()) == policy
    assert policy != Policy(recovery=Recovery(2, 0.05))
    first, second = recovered(**settings), recovered(**settings)
    assert state_digest(first.state_dict()) == state_digest(second.state_dict())
    assert state_digest(first.state_dict()) != state_digest(recovered().state_dict())


@pytest.mark.parametrize("operator", ["rank=0.5", "pca=0.5"])
@pytest.mark.parametrize("step", ["quantize", "adaround", "correct_bias"])
def test_a_step_before_pruning_sees_the_layers_that_pruning_takes_apart(step, operator, monkeypatch):
    monkeypatch.setattr(adaround, "STEPS", 5)
    workload = task()
    layers = {"0": LayerPolicy(4, 8), "4": LayerPolicy(4, 8, operator=operator)}
    policy = Policy(layers=layers, recovery=Recovery(1, 0.05, steps=(step, "prune", "train")))
    model = run(workload, policy, 0)
    assert [type(factor) for factor in model[4]] == [nn.Linear, nn.Linear]
    made = quantize(model, workload.example_input, effective_policy(policy), workload.calibration)
    assert made.inputs.keys() == {"0", "4.0", "4.1"}


@pytest.mark.parametrize("steps", [("prune", "train"), ("train", "prune", "train")], ids="-".join)
def test_what_is_frozen_is_trained_like_the_rest_and_the_workload_stays_frozen(steps):
    policy = Policy(layers={"4": LayerPolicy(sparsity=0.5)}, recovery=Recovery(2, 0.05, steps=steps))
    digests = set()
    for frozen in ((), ("0", "4"), ("0", "1", "4")):
        workload = task()
        for name in frozen:
            workload.model.get_submodule(name).requires_grad_(False)
        digests.add(state_digest(run(workload, policy, 0).state_dict()))
        assert all(workload.model.get_submodule(name).weight.requires_grad == (name not in frozen) for name in "014")
    assert len(digests) == 1


def test_settings_at_their_defaults_are_not_written():
    written = json.loads(Policy(recovery=Recovery(2)).to_json())["recovery"]
    assert set(written) == {"epochs", "learning_rate", "temperature", "alpha"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"steps": ("prune", "melt", "train")}, r"'melt' is not one of prune, quantize, train, lasso, slimming"),
        ({"steps": ("train",)}, r"'prune' is there 0 times"),
        ({"steps": ("prune",)}, r"'train' is there 0 times"),
        ({"data": "tests"}, r"'tests' is not one of train, unlabelled, synthetic"),
        ({"patience": -1}, r"patience must be a whole number >= 0"),
        ({"accumulate": 0}, r"accumulate must be a whole number >= 1"),
        ({"compile": 1}, r"compile must be true, false or auto"),
        ({"channels_last": "no"}, r"channels_last must be true, false or auto"),
    ],
)
def test_a_wrong_pipeline_is_reported_in_one_line(settings, problem):
    with pytest.raises(PolicyError, match=problem):
        Recovery(1, **settings)


def test_masked_weights_stay_zero_while_training_on_grids():
    workload = task()
    policy = Policy(
        layers={"4": LayerPolicy(4, 8, 0.5)}, recovery=Recovery(3, 0.05, steps=("train", "prune", "quantize", "train"))
    )
    model = run(workload, policy, 0)
    assert int((model[4].weight == 0).sum()) >= model[4].weight.numel() // 2


@pytest.mark.parametrize("mutual", [False, True])
def test_unlabelled_data_teach_the_same_whatever_the_labels(mutual):
    workload = task()
    lies = TensorDataset(workload.train.tensors[0], 1 - workload.train.tensors[1])
    digests = set()
    for data in (workload.train, lies):
        unlabelled = Workload(network(), data, data, data, data, workload.example_input)
        model = recover(network(1), unlabelled, Policy(recovery=Recovery(1, data="unlabelled", mutual=mutual)), 0, 16)
        digests.add(state_digest(model.state_dict()))
    assert len(digests) == 1


def test_synthetic_inputs_have_the_statistics_batch_norm_remembers():
    workload = task()
    convolution, norm = workload.model[0], workload.model[1]
    running = norm.running_mean, norm.running_var
    made = synthetic_inputs(workload, 0).tensors[0]
    with torch.no_grad():
        noise = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
        assert _gap(convolution(made), *running) < 0.5 * _gap(convolution(noise), *running)
