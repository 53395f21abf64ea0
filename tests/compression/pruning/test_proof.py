"""Removing channels equals masking them, or the group is left out: networks whose channels change places, and others."""

import copy

import pytest
import torch
from slimfront.compression.pruning.proof import prove_groups, proven_groups
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset

IMAGES = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two convolutions with something of the test's between them; maps [n, 3, 6, 6] to [n, 5]."""

    def __init__(self, between, channels: int = 24, read: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.between = between
        self.second = nn.Conv2d(read or channels, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.between(self.first(x).tanh())).tanh().mean((2, 3)))


class Do(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class AcrossChannels(nn.Module):
    """Efficient channel attention (Wang et al. 2020, arXiv:1910.03151): a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[:, :, None, None].sigmoid()


class Standardised(nn.Conv2d):
    """Takes the mean of its weight off in every pass, which is another one of fewer channels."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Excite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 16, 1), nn.Conv2d(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class NormOfImages(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h * w).transpose(1, 2).reshape(n, c, h, w)


MISPLACED = {
    "roll": Between(Do(lambda x: x.roll(1, 1))),
    "flip": Between(Do(lambda x: x.flip(1))),
    "every other": Between(Do(lambda x: x[:, ::2]), read=12),
    "shuffle in four dimensions": Between(Do(shuffle)),
    "attention along channels": Between(AcrossChannels()),
    "softmax": Between(nn.Softmax2d()),
    "neighbours normalised": Between(nn.LocalResponseNorm(3, alpha=1.0)),
}


@pytest.mark.parametrize("model", MISPLACED.values(), ids=MISPLACED.keys())
def test_channels_that_change_places_or_depend_on_one_another_are_left_whole(model):
    offered, _ = find_channel_groups(model.eval(), IMAGES[:1])
    groups, reasons = prove_groups(model, IMAGES, offered)
    assert [group.name for group in groups] == ["second"], "what comes after is proven all the same"
    assert set(reasons) == {group.name for group in offered} - {"second"}
    assert all(reason.startswith("with channels removed, ") for reason in reasons.values())


@pytest.mark.parametrize("is_seen", [True, False], ids=["seen in the outputs", "hidden by a dead activation"])
def test_a_layer_that_computes_otherwise_from_fewer_channels_is_not_hidden_by_what_comes_after_it(is_seen):
    head = (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))
    activation = nn.Identity() if is_seen else nn.Threshold(1e3, 0.0)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), Standardised(32, 16, 3), activation, nn.Conv2d(16, 16, 3), *head).eval()
    offered, _ = find_channel_groups(model, IMAGES[:1])
    assert "0" in {group.name for group in offered}
    groups, reasons = prove_groups(model, IMAGES, offered)
    assert "0" not in {group.name for group in groups}
    assert reasons["0"].startswith("with channels removed, 1 does not read")


RIGHT = {
    "plain": Between(nn.ReLU()),
    "batch norm": Between(nn.BatchNorm2d(24)),
    "group norm": Between(nn.GroupNorm(2, 24)),
    "instance norm": Between(nn.InstanceNorm2d(24, affine=True)),
    "layer norm": Between(NormOfImages(24)),
    "three times nine": Between(NormOfImages(27), channels=27),
    "excitation": Between(Excite(24)),
    "scale": Between(Scale(24)),
    "prelu": Between(nn.PReLU(24)),
    "depthwise": Between(nn.Conv2d(24, 24, 3, padding=1, groups=24)),
    "grouped": Between(nn.Conv2d(24, 24, 3, padding=1, groups=2)),
    "mean taken off": Between(Do(lambda x: x - x.mean(1, keepdim=True))),
}


@pytest.mark.parametrize("model", RIGHT.values(), ids=RIGHT.keys())
def test_channels_that_keep_their_places_are_proven(model):
    model.eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        outputs = model(IMAGES)
    groups, _ = find_channel_groups(model, IMAGES[:1])
    assert prove_groups(model, IMAGES, groups) == (groups, {})
    assert {"first", "second"} <= {layer for group in groups for layer in group.layers}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(IMAGES), outputs), "no hook is left"


def test_what_a_workload_offers_is_proven():
    data = TensorDataset(IMAGES, torch.zeros(3, dtype=torch.int64))
    workload = Workload(MISPLACED["roll"], data, data, data, data, IMAGES[:1])
    groups, reasons = proven_groups(workload)
    assert [group.name for group in groups] == ["second"]
    assert set(reasons) == {"first", "fc"}


class FlippedInParts(nn.Module):
    """A grouped convolution divides channels that are flipped: a random half of each part may be the same half after it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.grouped = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 16, 3, padding=1, groups=4)
        self.shortcut, self.second, self.fc = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (self.grouped(x) + self.shortcut(x)).tanh().flip(1)
        return self.fc(self.second(x).tanh().mean((2, 3)))


class DividedTogether(nn.Module):
    """A grouped convolution reads what two others make, each group channels of both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Conv2d(3, 32, 1), nn.Conv2d(3, 24, 1)
        self.grouped, self.fc = nn.Conv2d(56, 16, 1, groups=4), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.grouped(torch.cat([self.one(x), self.other(x)], 1).tanh()).tanh().mean((2, 3)))


class EveryOtherOfThrees(nn.Module):
    """Of parts of three channels only the middle ones do not stay in step with a slice of every other channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.grouped = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 24, 3, padding=1, groups=8)
        self.second, self.fc = nn.Conv2d(12, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.grouped(self.first(x).tanh())[:, ::2].tanh()).tanh().mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (FlippedInParts(), ["first", "second"]),
        (DividedTogether(), ["grouped"]),
        (EveryOtherOfThrees(), ["first", "second"]),
    ],
    ids=["flipped", "divided", "every other"],
)
def test_parts_that_grouped_convolutions_make_hide_nothing(model, left):
    offered, reasons = find_channel_groups(model.eval(), IMAGES[:1])
    groups, refuted = prove_groups(model, IMAGES, offered)
    assert [group.name for group in groups] == left
    assert {"fc"} < {*reasons, *refuted}
