"""Channel groups of small networks whose couplings are known, and what pruning them leaves."""

import copy
import re
import sys
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slimfront.compression.pruning.channels import remove_channels
from slimfront.core.errors import CompressionError
from slimfront.spaces.models import channel_groups
from slimfront.spaces.models.channel_graph import ChannelGraph
from slimfront.spaces.models.channel_groups import ChannelGroup, find_channel_groups
from slimfront.spaces.policies.pruning import MULTIPLES
from slimfront.workloads.attention import SelfAttention
from slimfront.workloads.builtin.digits_rnn import GRU, LSTM, RecurrentLayer
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch_pruning.dependency import constants, index_mapping

IMAGE = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    """Maps [n, 3, 8, 8] to [n, 10]; the addition couples the stem with the second convolution of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.conv2(self.norm(self.conv1(x)).relu())
        return self.fc(self.head(x).relu().mean((2, 3)))


class HardCoded(nn.Module):
    """Maps [n, 3, 8, 8] to [n, 10]; `counted` must keep its 16 channels, the other layers need not."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Conv2d(3, 32, 3, padding=1)
        self.counted = nn.Conv2d(32, 16, 3, padding=1)
        self.fc1 = nn.Linear(16, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.counted(self.free(x).relu()).relu()
        x = x.view(x.shape[0], 16, -1).mean(-1)
        return self.fc2(self.fc1(x).relu())


class Grouped(nn.Module):
    """Maps [n, 3, 8, 8] to [n, 10] with a grouped convolution between two plain layers."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.grouped(self.stem(x).relu()).relu().mean((2, 3)))


def test_groups_of_a_residual_network():
    groups, reasons = find_channel_groups(Residual(), IMAGE)
    assert [(group.name, group.channels, group.layers) for group in groups] == [
        ("conv1", 24, ("conv1",)),
        ("conv2", 16, ("conv2", "stem")),
        ("head", 32, ("head",)),
    ]
    assert reasons == {"fc": "its channels are the model's output"}


def test_finding_groups_leaves_the_model_alone():
    model = Residual().eval()
    before = copy.deepcopy(model.state_dict())
    find_channel_groups(model, IMAGE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("width", [512, 1024])
def test_only_the_last_layer_is_the_output_where_memory_is_used_again(width):
    # Large results share addresses: the first is freed before the last is made.
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
    groups, reasons = find_channel_groups(nn.Sequential(*layers), torch.zeros(1, width))
    assert [group.name for group in groups] == ["0", "2"]
    assert list(reasons) == ["4"]


def test_a_group_that_would_change_the_output_shape_is_left_out():
    class Branches(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), x.mean((2, 3))], dim=1)

    groups, reasons = find_channel_groups(Branches(), IMAGE)
    assert [group.name for group in groups] == ["conv1", "conv2", "head"]
    assert reasons == {"fc": "changes the output shape from [1, 13] to [1, 7]"}


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Softmax(dim=1), nn.Sigmoid()], ids=["relu", "softmax", "sigmoid"])
def test_an_activation_at_the_end_still_fixes_the_output_layer(last):
    groups, reasons = find_channel_groups(
        nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), last), torch.zeros(1, 16)
    )
    assert [group.name for group in groups] == ["0"]
    assert reasons == {"2": "changes the output shape from [1, 16] to [1, 8]"}


def test_an_unsafe_group_is_named_with_its_reason_and_the_rest_kept():
    groups, reasons = find_channel_groups(HardCoded(), IMAGE)
    assert [group.name for group in groups] == ["free", "fc1"]
    assert list(reasons) == ["fc2", "counted"]
    reason = reasons["counted"]
    assert re.match(
        r"with half of them forward fails in test_channel_groups\.py, line \d+, which has their number", reason
    )
    assert "mat1" not in reason


def test_a_group_too_narrow_to_lose_channels_is_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    groups, reasons = find_channel_groups(model, torch.zeros(1, 4))
    assert [group.name for group in groups] == ["2"]
    assert reasons["0"] == "its 4 channels are too few to lose any: a multiple of 4 is kept"
    assert groups[0].can_lose(4)
    assert not groups[0].can_lose(8)


@pytest.mark.parametrize(
    ("channels", "groups", "multiple"),
    [(32, 4, 8), (48, 3, 24), (32, 16, 16), (32, 32, 8)],
    ids=["4 groups", "3 groups", "16 groups", "depthwise"],
)
def test_grouped_convolutions_lose_whole_groups(channels, groups, multiple):
    model = Grouped(channels, groups).eval()
    found, _ = find_channel_groups(model, IMAGE)
    assert {group.rounded_to(8) for group in found} == {multiple}
    for group in found:
        for kept in range(multiple, channels, multiple):
            slim = copy.deepcopy(model)
            remove_channels(slim, IMAGE, {group.name: kept})
            assert slim.get_submodule(group.name).out_channels == kept
            assert slim(IMAGE).shape == (1, 10)


def test_a_group_norm_keeps_its_groups_whole():
    model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.GroupNorm(12, 48), nn.ReLU(), nn.Conv2d(48, 2, 1))
    groups, _ = find_channel_groups(model, IMAGE)
    assert [(group.name, group.rounded_to(8)) for group in groups] == [("0", 24)]


@pytest.mark.parametrize(
    ("channels", "fraction", "multiple", "kept"),
    [
        (64, 0.5, 8, 32),
        (64, 0.7, 8, 48),  # 44.8: five and six multiples of 8 are 40 and 48
        (64, 0.7, 4, 44),
        (64, 0.01, 8, 8),
        (64, 1.0, 8, 64),
        (24, 0.5, 8, 16),  # 12 is halfway between 8 and 16; Python rounds to the even multiple
        (16, 0.75, 4, 12),
        (16, 0.25, 4, 4),
        (10, 0.9, 8, 8),
        (10, 1.0, 8, 10),
        (20, 1.0, 8, 20),
        (4, 0.25, 4, 4),
    ],
)
def test_kept_channels_by_hand(channels, fraction, multiple, kept):
    assert ChannelGroup("g", channels, ("g",)).kept(fraction, multiple) == kept


@given(st.integers(2, 300), st.floats(0.001, 1), st.floats(0.001, 1), st.sampled_from(MULTIPLES))
def test_kept_channels_grow_with_the_fraction(channels, first, second, multiple):
    group = ChannelGroup("g", channels, ("g",))
    fewer, more = group.kept(min(first, second), multiple), group.kept(max(first, second), multiple)
    assert 1 <= fewer <= more <= group.kept(1.0, multiple) == channels
    assert fewer % multiple == 0 or fewer == channels


def test_removing_other_channels_than_asked_for_is_an_error():
    with pytest.raises(CompressionError, match=r"^grouped: \d+ channels left instead of 20$"):
        remove_channels(Grouped(48, 3), IMAGE, {"grouped": 20})


def test_removing_from_a_model_that_cannot_be_pruned_is_one_line():
    class Breaks(Residual):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no\nsuch luck")

    with pytest.raises(CompressionError, match=r"^Torch-Pruning failed: no$"):
        remove_channels(Breaks(), IMAGE, {"stem": 8})


@pytest.mark.parametrize("inplace", [False, True])
def test_activations_in_place_hide_no_group(inplace):
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(inplace), nn.Conv2d(32, 16, 3), nn.ReLU(inplace), nn.Conv2d(16, 2, 1)]
    model = nn.Sequential(*layers)
    groups, reasons = find_channel_groups(model, IMAGE)
    assert [group.name for group in groups] == ["0", "2"]
    assert reasons == {"4": "its channels are the model's output"}
    remove_channels(model, IMAGE, {"0": 16, "2": 8})
    assert [model[index].out_channels for index in (0, 2, 4)] == [16, 8, 2]


def test_an_output_that_is_changed_in_place_is_still_the_output():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(inplace=True))
    groups, reasons = find_channel_groups(model, torch.zeros(1, 16))
    assert [group.name for group in groups] == ["0"]
    assert reasons == {"2": "its channels are the model's output"}


def test_groups_that_are_safe_alone_and_not_together_are_not_both_offered():
    class Thin(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if self[0].out_features + self[2].out_features < 24:
                raise RuntimeError("too thin")
            return super().forward(x)

    model = Thin(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    groups, reasons = find_channel_groups(model, torch.zeros(1, 4))
    assert [group.name for group in groups] == ["2"]
    assert reasons["0"].startswith(
        "not together with 2: with half of them forward fails in test_channel_groups.py, line "
    )


def test_a_model_that_cannot_be_traced_has_no_groups_and_says_why():
    class ThroughNumpy(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.from_numpy(self.head(self.stem(x)).mean((2, 3)).numpy()))

    with torch.no_grad():
        groups, reasons = find_channel_groups(ThroughNumpy(), IMAGE)
    assert groups == []
    reason = "no channel can be followed: Torch-Pruning failed: Can't call numpy() on Tensor that requires grad."
    assert reasons["ThroughNumpy"].startswith(reason)


class PartlyWithoutGradients(nn.Module):
    """Features that no gradient flows through, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(x)
        return self.head(self.hidden(features.relu()).relu())


def test_layers_that_no_gradient_flows_through_are_named():
    groups, reasons = find_channel_groups(PartlyWithoutGradients(), torch.randn(1, 8))
    assert [group.name for group in groups] == ["hidden"]
    assert reasons["features"].startswith(
        "its channels cannot be followed: forward does not call it, or lets no gradient"
    )
    assert reasons["head"] == "its channels are the model's output"


class Sequence(nn.Module):
    """Maps [n, steps, 6] to [n, 3]."""

    def __init__(self, layer: type[RecurrentLayer]) -> None:
        super().__init__()
        self.rnn, self.fc = layer(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[:, -1])


@pytest.mark.parametrize("layer", [GRU, LSTM])
def test_hidden_units_are_one_group_however_long_the_sequence_is(layer):
    """Torch-Pruning ends its walks after 500 operations, which is 16 steps, and answers something else."""
    limits = constants.MAX_RECURSION_DEPTH, sys.getrecursionlimit()
    model = Sequence(layer)
    short = find_channel_groups(model, torch.randn(1, 5, 6))
    assert [len(group.layers) for group in short[0]] == [2 * len(layer.gates)]
    for steps in (17, 50, 100):
        assert find_channel_groups(model, torch.randn(1, steps, 6)) == short
    assert (constants.MAX_RECURSION_DEPTH, sys.getrecursionlimit()) == limits


def test_where_torch_pruning_gives_up_with_a_warning_that_is_the_reason(monkeypatch):
    monkeypatch.setattr(
        index_mapping,
        "update_index_mapping",
        lambda _graph: warnings.warn("Maximum recursive depth reached!", stacklevel=1),
    )
    groups, reasons = find_channel_groups(Residual(), IMAGE)
    assert groups == []
    assert reasons["Residual"].endswith("Torch-Pruning failed: Maximum recursive depth reached!")


def test_a_model_is_traced_once_however_many_groups_are_tried(monkeypatch):
    traced = []

    class Counted(ChannelGraph):
        def __init__(self, *args) -> None:
            traced.append(args)
            super().__init__(*args)

    monkeypatch.setattr(channel_groups, "ChannelGraph", Counted)
    find_channel_groups(HardCoded(), IMAGE)
    assert len(traced) == 1


class Normed(nn.Module):
    """A layer whose reader computes its weight from a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 32, 3), weight_norm(nn.Conv2d(32, 16, 3))
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.conv(self.stem(x)).relu().mean((2, 3))).relu())


def test_channels_that_a_parametrized_weight_reads_stay_and_say_how_to_free_them():
    groups, reasons = find_channel_groups(Normed(), IMAGE)
    assert [group.name for group in groups] == ["fc1"]
    assert reasons["stem"].startswith(
        "the weight of conv is computed from other parameters in every pass; torch.nn.utils"
    )


class Heads(SelfAttention):
    """Attention that cuts the weights it has."""

    def keep_heads(self, kept: list[int]) -> None:
        whole = copy.deepcopy(self)
        SelfAttention.keep_heads(whole, kept)
        self.num_heads = whole.num_heads
        for name, weight in self.named_parameters():
            weight.data = whole.get_parameter(name).data


class Attending(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        tokens = self[0](x).flatten(2).transpose(1, 2)
        return self[2](self[1](tokens, tokens, tokens)[0].mean(1))


@pytest.mark.parametrize(
    ("model", "name", "count"),
    [
        (Residual(), "conv2", lambda layer: layer.weight.shape[0]),
        (Grouped(32, 4), "grouped", lambda layer: layer.weight.shape[0]),
        (
            Attending(nn.Conv2d(3, 32, 4, 4), Heads(32, 16), nn.Linear(32, 4)),
            "1",
            lambda layer: layer.in_proj.weight.shape[0] // 6,
        ),
    ],
    ids=["residual", "grouped", "heads"],
)
def test_a_graph_gives_back_what_it_removed_for_a_while(model, name, count):
    graph = ChannelGraph(model.eval(), IMAGE)
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected, before = model(image), copy.deepcopy(model.state_dict())
        for _ in range(2):
            with graph.without({name: graph.any_channels(name, 8)}) as slim:
                assert count(slim.get_submodule(name)) == 8
                assert slim(image).shape == expected.shape
        assert torch.equal(model(image), expected)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_an_assertion_in_the_models_own_code_is_a_reason():
    class Asserting(Residual):
        def forward(self, x: Tensor) -> Tensor:
            assert self.head.out_channels == 32
            return super().forward(x)

    groups, reasons = find_channel_groups(Asserting(), IMAGE)
    assert [group.name for group in groups] == ["conv1", "conv2"]
    assert reasons["head"].startswith("with half of them forward fails in test_channel_groups.py, line ")


class NormOfBoth(nn.Module):
    """Scales what two convolutions of volumes make, and divides it by a norm that is expanded over their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Conv3d(2, 32, 1), nn.Conv3d(2, 16, 1), nn.Conv3d(48, 8, 1)
        self.scale, self.fc = nn.Parameter(torch.rand(48)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.one(x), self.other(x)], 1) * self.scale.view(-1, 1, 1, 1)
        return self.fc(self.last(nn.functional.normalize(x, dim=1)).mean((2, 3, 4)))


class AddsWhereItFits(nn.Sequential):
    """Adds what a layer reads wherever the shapes are the same, which fewer channels decide anew."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            made = layer(x)
            x = made + x if made.shape == x.shape else made
        return x


class KeepsABias(nn.Module):
    """Looks its bias up in a table once while it is in eval mode, as LeViT does with those of its attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.table, self.kept = nn.Parameter(torch.rand(4)), []

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self.kept.clear()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.kept:
            self.kept.append(self.table[[0]])
        return self.last(self.first(x) + self.kept[0])


def test_what_a_model_keeps_of_a_call_does_not_make_its_path_another_one():
    groups, _ = find_channel_groups(KeepsABias().eval(), torch.zeros(1, 8))
    assert [group.name for group in groups] == ["first"]


def test_of_a_model_that_takes_another_path_each_time_all_channels_stay():
    class Counts(KeepsABias):
        def forward(self, x: Tensor) -> Tensor:
            self.kept.append(self.table[[0]])
            Counts.calls += 1
            return sum([super(Counts, self).forward(x) for _ in range(Counts.calls)])

        calls = 0

    groups, reasons = find_channel_groups(Counts().eval(), torch.zeros(1, 8))
    assert groups == []
    assert reasons["first"].startswith("with half of them forward takes another path from ")


@pytest.mark.parametrize(
    ("model", "example", "name", "reason"),
    [
        (NormOfBoth(), torch.zeros(1, 2, 4, 4, 4), "one", "which of its channels a layer or parameter after it reads cannot be followed"),
        (AddsWhereItFits(nn.Linear(8, 16), nn.Linear(16, 3)), torch.zeros(1, 8), "0", "with half of them forward takes another path from test_channel_groups.py, line "),
    ],
    ids=["expanded", "added where it fits"],
)  # fmt: skip
def test_channels_that_are_lost_sight_of_or_decide_the_path_are_left_whole(model, example, name, reason):
    groups, reasons = find_channel_groups(model.eval(), example)
    assert name not in {group.name for group in groups}
    assert reasons[name].startswith(reason)
