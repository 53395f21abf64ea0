"""Channels really removed and weights really zeroed, on weights for which the right answer is known."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slimfront.compression.pruning.prune import (
    is_structurally_changed,
    kept_channels,
    mask_weight,
    pruned_copy,
    reestimate_batch_norm,
    two_of_four_mask,
)
from slimfront.core.errors import CompressionError
from slimfront.spaces.models.channel_groups import ChannelGroup, find_channel_groups
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import Tensor, nn
from torch.utils.data import TensorDataset

IMAGE = torch.zeros(1, 3, 8, 8)
LARGE = [1, 2, 4, 7, 8, 11, 13, 14]
"""The channels that must survive when half of 16 go."""


class Residual(nn.Module):
    """Maps [n, 3, 8, 8] to [n, 10]; the addition couples `stem` and `conv2`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.conv2(self.norm(self.conv1(x)).relu())
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def model() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture
def groups(model) -> list[ChannelGroup]:
    return find_channel_groups(model, IMAGE)[0]


def shrink_all_but(channels: list[int], model: Residual) -> None:
    """Make every weight that belongs to another channel of the residual stream a hundred times smaller."""
    others = [channel for channel in range(16) if channel not in channels]
    with torch.no_grad():
        for weight in (model.stem.weight, model.conv2.weight):
            weight[others] /= 100
        for weight in (model.conv1.weight, model.fc.weight):
            weight[:, others] /= 100


def test_the_channels_of_smallest_magnitude_go(model, groups):
    shrink_all_but(LARGE, model)
    slim = pruned_copy(model, IMAGE, Policy(channels={"conv2": 0.5}), groups)
    assert torch.equal(slim.stem.weight, model.stem.weight[LARGE])
    assert torch.equal(slim.stem.bias, model.stem.bias[LARGE])
    assert torch.equal(slim.conv1.weight, model.conv1.weight[:, LARGE])
    assert torch.equal(slim.conv2.weight, model.conv2.weight[LARGE])
    assert torch.equal(slim.fc.weight, model.fc.weight[:, LARGE])
    assert torch.equal(slim.norm.weight, model.norm.weight)


def test_removed_channels_compute_what_silenced_ones_would(model, groups):
    shrink_all_but(LARGE, model)
    slim = pruned_copy(model, IMAGE, Policy(channels={"conv2": 0.5}), groups)
    others = [channel for channel in range(16) if channel not in LARGE]
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        silenced.conv1.weight[:, others] = 0
        silenced.fc.weight[:, others] = 0
        images = torch.randn(8, 3, 8, 8)
        torch.testing.assert_close(slim(images), silenced(images))


def test_shapes_and_parameters_of_half_the_width_by_hand(model, groups):
    slim = pruned_copy(model, IMAGE, Policy(width=0.5), groups)
    assert [tuple(p.shape) for p in slim.parameters()] == [
        (8, 3, 3, 3), (8,),  # stem
        (16, 8, 3, 3),  # conv1
        (16,), (16,),  # norm
        (8, 16, 3, 3), (8,),  # conv2
        (10, 8), (10,),  # fc
    ]  # fmt: skip
    assert sum(p.numel() for p in slim.parameters()) == 224 + 1152 + 32 + 1160 + 90
    assert slim.norm.running_mean.shape == (16,)
    assert not slim.training


def test_width_and_channel_sparsity_multiply():
    group = ChannelGroup("g", 64, ("g",))
    assert kept_channels(Policy(width=0.5, channels={"g": 0.5}), [group]) == {"g": 16}
    assert kept_channels(Policy(width=0.75), [group]) == {"g": 48}
    assert kept_channels(Policy(channels={"g": 0.01}), [group]) == {}  # 63.4 rounds to all 64


def test_the_uncompressed_policy_keeps_a_group_that_is_no_multiple():
    assert kept_channels(Policy(), [ChannelGroup("g", 20, ("g",))]) == {}


@pytest.mark.parametrize(
    ("policy", "changed"),
    [
        (Policy(), False),
        (Policy(layers={"fc": LayerPolicy(weight_bits=4)}), False),
        (Policy(layers={"fc": LayerPolicy(sparsity=0.5)}), True),
        (Policy(width=0.5), True),
        (Policy(channels={"conv1": 0.001}), False),  # rounds to every channel
    ],
)
def test_what_changes_the_structure(policy, changed, groups):
    assert is_structurally_changed(policy, groups) is changed


def test_the_original_model_stays_as_it_is(model, groups):
    before = copy.deepcopy(model.state_dict())
    policy = Policy(width=0.5, layers={"conv1": LayerPolicy(sparsity=0.5), "fc": LayerPolicy(sparsity="2:4")})
    pruned_copy(model, IMAGE, policy, groups)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_a_fraction_of_the_weights_is_exactly_zero_smallest_first(sparsity):
    layer = nn.Conv2d(4, 5, 3)
    before = layer.weight.detach().clone()
    mask_weight(layer, sparsity)
    zeros = layer.weight == 0
    assert int(zeros.sum()) == round(sparsity * 180)
    assert before[zeros].abs().max() < before[~zeros].abs().min()
    assert torch.equal(layer.weight[~zeros], before[~zeros])
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight"]
    assert list(layer.named_buffers()) == []


def test_masks_count_the_weights_left_after_channels_went(model, groups):
    policy = Policy(width=0.5, layers={"conv1": LayerPolicy(sparsity=0.25), "conv2": LayerPolicy(sparsity="2:4")})
    slim = pruned_copy(model, IMAGE, policy, groups)
    assert int((slim.conv1.weight == 0).sum()) == 16 * 72 // 4
    assert int((slim.conv2.weight == 0).sum()) == 8 * 144 // 2


def test_two_of_four_by_hand():
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.1, 0.2, -0.3, 0.05], [-1.0, 2.0, -3.0, 4.0, 8.0, 7.0, 6.0, 5.0]])
    assert two_of_four_mask(weight).tolist() == [[0, 1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1, 0, 0]]


@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, 8), (2, 4, 3), (5, 4, 3, 3), (1, 2, 2, 2, 1)]))
def test_two_of_every_four_are_kept_and_they_are_the_largest(seed, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    mask = two_of_four_mask(weight)
    assert mask.shape == weight.shape
    kept, quads = mask.reshape(-1, 4).bool(), weight.abs().reshape(-1, 4)
    assert (kept.sum(dim=1) == 2).all()
    smallest_kept = quads.masked_fill(~kept, float("inf")).min(dim=1).values
    assert (smallest_kept >= quads.masked_fill(kept, 0).max(dim=1).values).all()


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (Policy(layers={"nowhere": LayerPolicy(sparsity=0.5)}), r"^no layer 'nowhere' in the model$"),
        (Policy(layers={"relu": LayerPolicy(sparsity=0.5)}), r"^no layer 'relu' in the model$"),
        (Policy(layers={"norm": LayerPolicy(sparsity=0.5)}), r"^no layer 'norm' in the model$"),
        (Policy(channels={"nowhere": 0.5}), r"^no channel group 'nowhere' in the model$"),
        (Policy(layers={"stem": LayerPolicy(sparsity="2:4")}), r"multiple of 4, not 27$"),
    ],
)
def test_a_policy_that_does_not_fit_the_model_is_reported_in_one_line(policy, problem, model, groups):
    model.relu = nn.ReLU()
    with pytest.raises(CompressionError, match=problem):
        pruned_copy(model, IMAGE, policy, groups)


class AddsWhereItFits(nn.Sequential):
    """Adds what a layer reads wherever the shapes are the same, which fewer channels decide anew."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            made = layer(x)
            x = made + x if made.shape == x.shape else made
        return x


def test_channels_that_change_the_path_through_the_model_are_not_removed():
    model = AddsWhereItFits(nn.Linear(6, 16), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 3)).eval()
    groups, _ = find_channel_groups(model, torch.zeros(1, 6))
    assert pruned_copy(model, torch.zeros(1, 6), Policy(channels={"1": 0.7}), groups)[1].out_features == 8
    problem = r"^with the channels that are left forward takes another path from test_prune\.py, line \d+ on, as code does that looks at"
    with pytest.raises(CompressionError, match=problem):
        pruned_copy(model, torch.zeros(1, 6), Policy(channels={"1": 0.3}), groups)  # 16, as many as it reads


class LosesABlock(nn.Module):
    """Without its block, what `first` makes is added to what it reads, of which another layer has the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = (
            nn.Linear(6, 16),
            nn.Sequential(nn.Linear(16, 16), nn.Tanh()),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        made = self.block(x)
        return self.last(made if made is not x else x.view(-1, 16))


def test_what_does_not_run_without_blocks_and_channels_says_so():
    model = LosesABlock().eval()
    groups, _ = find_channel_groups(model, torch.zeros(1, 6))
    policy = Policy(channels={"first": 0.5}, removed_blocks=("block",))
    with pytest.raises(
        CompressionError,
        match=r"^blocks and channels: without block, .* forward fails in test_prune\.py, line \d+: \w+: .+$",
    ):
        pruned_copy(model, torch.zeros(1, 6), policy, groups)


def norms(*channels: int) -> nn.Sequential:
    return nn.Sequential(*[nn.BatchNorm2d(count, momentum=0.3) for count in channels]).eval()


def batches_of(images: Tensor) -> TensorDataset:
    return TensorDataset(images, torch.zeros(len(images)))


def test_batch_norm_is_reestimated_to_the_mean_and_variance_by_hand():
    model = norms(2)
    model[0].running_mean.fill_(7)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, 3.0]))
    images = torch.randn(100, 2, 4, 4) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1) + 3
    reestimate_batch_norm(model, batches_of(images), batch_size=50)
    halves = images.view(2, 50, 2, 4, 4).transpose(1, 2).flatten(2)  # half, channel, values
    torch.testing.assert_close(model[0].running_mean, halves.mean(2).mean(0))
    torch.testing.assert_close(model[0].running_var, halves.var(2).mean(0))  # unbiased, as in training
    assert model[0].weight.tolist() == [2, 3]
    assert (model[0].momentum, model[0].training) == (0.3, False)


def test_a_norm_behind_another_sees_what_that_one_makes_of_a_batch():
    model = norms(1, 1)
    with torch.no_grad():
        model[0].weight.fill_(4)
        model[0].bias.fill_(-1)
    reestimate_batch_norm(model, batches_of(torch.randn(50, 1, 8, 8) * 9 + 5))
    assert model[1].running_mean.item() == pytest.approx(-1, abs=1e-5)
    assert model[1].running_var.item() == pytest.approx(16 * 3200 / 3199, rel=1e-4)


def test_a_short_last_batch_has_no_say():
    images = torch.randn(101, 1, 2, 2)
    images[-1] = 1000
    model = norms(1)
    reestimate_batch_norm(model, batches_of(images), batch_size=50)
    torch.testing.assert_close(model[0].running_mean, images[:100].mean().view(1))


def test_few_calibration_samples_are_all_used():
    images = torch.randn(30, 1, 2, 2)
    model = norms(1)
    reestimate_batch_norm(model, batches_of(images), batch_size=50)
    torch.testing.assert_close(model[0].running_mean, images.mean().view(1))


def test_a_model_without_batch_norm_is_not_run():
    reestimate_batch_norm(nn.Linear(2, 2), batches_of(torch.zeros(4, 3)))  # would not run: 3 is not 2
