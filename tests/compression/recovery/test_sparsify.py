"""Sparsity that is learned: what a step drives to zero is what pruning removes."""

import copy
from collections.abc import Callable

import pytest
import torch
from slimfront.compression.compress import compressed
from slimfront.compression.pruning.parts import Weights, parts_of, scales_of
from slimfront.compression.pruning.prune import kept_channels, pruned_copy, reestimate_batch_norm
from slimfront.compression.recovery.recover import recover
from slimfront.compression.recovery.sparsify import LEFT, Admm, Lasso
from slimfront.core.errors import PolicyError
from slimfront.spaces.models.channel_groups import ChannelGroup, find_channel_groups
from slimfront.spaces.models.layers import layer_at
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.pruning import Pruning
from slimfront.workloads.attention import SelfAttention
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Residual(nn.Module):
    """A residual block, a depthwise convolution and a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.inner_norm = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.outer = nn.Conv2d(24, 16, 1)
        self.fc = nn.Linear(16 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.deep(self.inner_norm(self.inner(x)).relu()).relu())
        return self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(4, 32), SelfAttention(32, 4)
        self.up, self.down, self.fc = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.fc((x + self.down(self.up(x).relu())).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "attention": Attending}


def task(make: Callable[[], nn.Module]) -> Workload:
    torch.manual_seed(0)
    images, model = torch.randn(48, 1, 4, 4), make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 2)
            nn.init.normal_(module.bias)
    data = TensorDataset(images, model.eval()(images).argmax(1))
    return Workload(model, data, data, data, data, images[:1])


def setting(make, **policy):
    """Workload, policy, its groups and how many channels they keep."""
    workload, policy = task(make), Policy(**policy)
    groups, _ = find_channel_groups(workload.model, workload.example_input)
    return workload, policy, groups, kept_channels(policy, groups)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_what_is_driven_to_zero_is_what_is_removed_and_removing_it_changes_nothing(make):
    """With nothing that resists, a penalty of 1 zeroes just the channels and heads that the policy removes."""
    workload, policy, groups, kept = setting(make, width=0.5)
    model = copy.deepcopy(workload.model)
    parts = parts_of(model, workload.example_input, policy, kept)
    assert len(parts) == len(groups) == len(kept) > 1
    lasso = Lasso(parts, 1.0)
    for _ in range(20):
        lasso(0.05)
    for part, group in zip(parts, groups, strict=True):  # where one weight is in two parts, a few more may be zero
        assert 0 < int((part.norms(lambda weight: weight) > 1e-6).sum()) <= kept[group.name]
    inputs = workload.train.tensors[0]
    pruned = pruned_copy(model, workload.example_input, policy, groups)
    assert pruned(inputs).shape == (48, 3)
    torch.testing.assert_close(pruned(inputs), model.eval()(inputs), atol=1e-5, rtol=1e-4)


def test_the_lasso_takes_the_same_from_every_norm_that_is_to_go():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -0.4], [0.3, 1.0]]))
    lasso = Lasso([Weights({"layer": 0.5}, {"layer": layer})], 1.0)
    lasso(0.5)  # the second smallest of four is 0.3, and half of that is taken
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.0, -0.4], [0.15, 1.0]]))
    lasso(0.25)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.0, -0.4], [0.075, 1.0]]))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.2, -0.4], [0.7, 0.3]]))  # training decided otherwise
    lasso(0.25)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.0, -0.4], [0.7, 0.0]]))


@pytest.mark.parametrize("sparsity", [0.5, "2:4", "<0.7std"])
def test_admm_pulls_the_weights_to_the_nearest_sparse_ones(sparsity):
    torch.manual_seed(0)
    layer = nn.Linear(16, 8, bias=False)
    original, part = layer.weight.detach().clone(), Weights({"layer": sparsity}, {"layer": layer})
    kept = part.kept(part.norms(lambda weight: weight)).view_as(original)
    admm = Admm([part], 1.0)
    assert 0.1 < kept.mean() < 0.9
    for _ in range(9):
        admm(0.01)  # before the first correction
    pulled = LEFT**0.09
    torch.testing.assert_close(layer.weight.detach(), original * (kept + (1 - kept) * pulled))
    for _ in range(91):
        admm(0.01)
    assert (layer.weight * (1 - kept)).norm() < 0.2 * (original * (1 - kept)).norm()
    torch.testing.assert_close(layer.weight.detach() * kept, original * kept)


def test_weights_of_a_global_fraction_are_ranked_together():
    workload, policy, _, kept = setting(
        Residual,
        layers={name: LayerPolicy(sparsity=0.5) for name in ("inner", "outer")},
        pruning=Pruning(scope="global"),
    )
    (part,) = parts_of(workload.model, workload.example_input, policy, kept)
    layers = [layer_at(workload.model, name).weight for name in ("inner", "outer")]
    assert part.norms(lambda weight: weight).numel() == sum(weight.numel() for weight in layers)


def test_slimming_is_of_batch_norms_alone():
    workload, _, _, kept = setting(Residual, width=0.5)
    parts = scales_of(workload.model, workload.example_input, kept)
    norms = {id(norm.weight) for norm in (workload.model.norm, workload.model.inner_norm)}
    assert {id(weight) for part in parts for weight in part.parameters} == norms
    workload, _, _, kept = setting(Attending, width=0.5)
    assert scales_of(workload.model, workload.example_input, kept) == []


@pytest.mark.parametrize("step", ["lasso", "slimming", "admm"])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_policy_with_such_a_step_replays_and_is_pruned_as_it_says(make, step):
    criterion = "bn_scale" if step == "slimming" else "l2"
    recovery = Recovery(2, 0.02, steps=(step, "prune", "train"))
    workload, policy, groups, kept = setting(make, width=0.5, recovery=recovery, pruning=Pruning(criterion))
    first, second = (compressed(workload, policy, seed=3, batch_size=16).model for _ in range(2))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    name = next(group.name for group in reversed(groups) if group.unit == "channel")
    assert layer_at(first, name).weight.shape[0] == kept[name]
    assert Policy.from_json(policy.to_json()) == policy


def lost_to_pruning(digits: Workload, groups: list[ChannelGroup], step: str) -> float:
    """How far the outputs are from the whole model's once half of the channels are gone, after an epoch before."""
    policy = Policy(width=0.5, recovery=Recovery(1, 0.02, steps=(step, "prune", "train")))
    pruned: list[nn.Module] = []

    def prune(model: nn.Module) -> nn.Module:
        pruned.append(pruned_copy(model, digits.example_input, policy, groups))
        return copy.deepcopy(pruned[0])

    recover(digits.model, digits, policy, 0, 64, prune, groups)
    reestimate_batch_norm(pruned[0], digits.calibration)
    with torch.no_grad():
        inputs = torch.stack([digits.validation[index][0] for index in range(len(digits.validation))])
        return float((pruned[0](inputs) - digits.model(inputs)).square().mean())


def test_training_towards_the_zeros_loses_less_to_pruning_than_training_alone(digits_workload):
    """In kind what the papers show, at the same channels and epochs: before any training after pruning."""
    groups, _ = find_channel_groups(digits_workload.model, digits_workload.example_input)
    lost = {step: lost_to_pruning(digits_workload, groups, step) for step in ("train", "lasso", "admm")}
    assert lost["lasso"] < 0.7 * lost["train"]
    assert lost["admm"] < 0.7 * lost["train"]


def test_steps_come_before_pruning_and_say_nothing_where_they_are_not():
    with pytest.raises(PolicyError, match=r"^recovery steps: 'admm' comes before prune and quantize$"):
        Recovery(1, steps=("prune", "admm", "train"))
    with pytest.raises(PolicyError, match=r"^recovery steps: 'lasso' is there 2 times"):
        Recovery(1, steps=("lasso", "lasso", "prune", "train"))
    with pytest.raises(PolicyError, match=r"^recovery penalty must be > 0, not 0"):
        Recovery(1, penalty=0)
    assert "penalty" not in Recovery(1).to_dict()
    assert Policy(width=0.5, recovery=Recovery(0, steps=("lasso", "prune", "train"))).recovery == Recovery()
