"""Recurrent layers: their hidden units are groups, and what is removed equals what is masked."""

import pytest
import torch
from slimfront.compression.pruning.criteria import Scoring, get_criterion
from slimfront.compression.pruning.proof import prove_groups
from slimfront.compression.pruning.reconstruct import reconstruct_channels
from slimfront.spaces.models.channel_graph import ChannelGraph
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.models.layers import macs_by_module
from slimfront.workloads.recurrent import RecurrentStack, free_layers
from torch import nn

READERS = {
    "last step": lambda out, last: out[:, -1],
    "mean": lambda out, last: out.mean(1),
    "maximum": lambda out, last: out.max(1)[0],
    "every step": lambda out, last: out,
    "convolution": lambda out, last: out.transpose(1, 2),
    "last state": lambda out, last: last[-1],
    "both last states": lambda out, last: torch.cat([last[-2], last[-1]], 1),
}
KINDS = [nn.GRU, nn.LSTM, nn.RNN]


class Series(nn.Module):
    """A linear layer, a recurrent one and what reads it: [n, 7, 5] -> [n, .., 3]."""

    def __init__(self, kind, reader, **options):
        super().__init__()
        self.pre = nn.Linear(5, 24)
        self.rnn = kind(24, 32, **options)
        self.batch_first, self.reader = options.get("batch_first", False), reader
        width = 64 if options.get("bidirectional") and reader != "last state" else 32
        self.head = nn.Conv1d(width, 3, 3) if reader == "convolution" else nn.Linear(width, 3)

    def forward(self, x):
        x = torch.tanh(self.pre(x))
        out, state = self.rnn(x if self.batch_first else x.transpose(0, 1))
        last = state[0] if isinstance(state, tuple) else state
        return self.head(READERS[self.reader](out if self.batch_first else out.transpose(0, 1), last))


def series(kind, reader, **options):
    torch.manual_seed(0)
    return free_layers(Series(kind, reader, **options), torch.randn(1, 7, 5)).eval()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("reader", "options"),
    [
        ("last step", {"batch_first": True}),
        ("last step", {"num_layers": 2}),
        ("mean", {"batch_first": True, "bidirectional": True}),
        ("maximum", {}),
        ("every step", {"num_layers": 2, "batch_first": True, "bidirectional": True}),
        ("convolution", {"batch_first": True, "bidirectional": True, "bias": False}),
        ("last state", {"num_layers": 3, "batch_first": True}),
        ("last state", {"bidirectional": True}),
        ("both last states", {"num_layers": 2, "batch_first": True, "bidirectional": True}),
    ],
    ids=str,
)
def test_units_are_groups_of_which_removed_equals_masked(kind, reader, options) -> None:
    model, inputs = series(kind, reader, **options), torch.randn(4, 7, 5)
    groups, _ = find_channel_groups(model, inputs[:1])
    proven, refuted = prove_groups(model, inputs, groups)
    layers = options.get("num_layers", 1)
    names = ["rnn"] if layers == 1 else [f"rnn.{depth}" for depth in range(layers)]
    assert not refuted
    assert [(group.name, group.channels) for group in proven] == [("pre", 24), *((name, 32) for name in names)]

    gone = {name: [1, 2, 5, 11, 13, 28] for name in names}
    masked = series(kind, reader, **options)
    for name in names:
        _mask(masked.get_submodule(name), gone[name])
    with torch.no_grad():
        expected = masked(inputs)
    graph = ChannelGraph(model, inputs[:1])
    graph.remove(gone)
    assert [model.get_submodule(name).hidden_size for name in names] == [26] * layers
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-5)


def _mask(layer: nn.RNNBase, units: list[int]) -> None:
    """Have these units never be read, as if they were always 0."""
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            weight.data[:, units] = 0

    def zero(_layer, _inputs, output):
        out, state = output
        for tensor in (out, *(state if isinstance(state, tuple) else (state,))):
            tensor.data.unflatten(-1, (-1, layer.hidden_size))[..., units] = 0
        return output

    layer.register_forward_hook(zero)


def test_a_first_state_is_tied_to_the_units() -> None:
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 32)
            self.rnn = nn.GRU(6, 32, batch_first=True)
            self.head = nn.Linear(32, 3)

        def forward(self, x):
            return self.head(self.rnn(x, self.first(x[:, 0]).unsqueeze(0))[0])

    model, inputs = Decoder().eval(), torch.randn(3, 9, 6)
    groups, _ = find_channel_groups(model, inputs[:1])
    assert [sorted(group.layers) for group in groups] == [["first", "rnn"]]
    assert prove_groups(model, inputs, groups)[1] == {}


def test_a_stack_computes_what_the_layers_in_one_module_do() -> None:
    for kind in KINDS:
        whole = nn.ModuleDict({"rnn": kind(5, 8, 3, bidirectional=True, dropout=0.5)}).eval()
        stack = RecurrentStack(whole["rnn"])
        inputs, first = torch.randn(7, 2, 5), torch.randn(6, 2, 8)
        given = (first, first) if kind is nn.LSTM else first
        torch.testing.assert_close(stack(inputs, given), whole["rnn"](inputs, given))
        packed = nn.utils.rnn.pack_padded_sequence(inputs, [7, 4])
        torch.testing.assert_close(stack(packed)[0].data, whole["rnn"](packed)[0].data)


def test_layers_whose_states_are_read_together_keep_one_number_of_units() -> None:
    class Together(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(6, 32, 2, batch_first=True), nn.Linear(32, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[1].mean(0))

    inputs = torch.randn(3, 9, 6)
    model = free_layers(Together(), inputs[:1])
    groups, _ = find_channel_groups(model, inputs[:1])
    assert [group.layers for group in groups] == [("rnn.0", "rnn.1")]
    assert prove_groups(model, inputs, groups)[1] == {}


def test_projected_states_are_left_alone() -> None:
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.pre, self.rnn, self.head = nn.Linear(5, 32), nn.LSTM(32, 32, proj_size=16), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.rnn(torch.relu(self.pre(x)))[0])

    groups, reasons = find_channel_groups(Projected().eval(), torch.randn(1, 7, 5))
    assert "rnn" not in {group.name for group in groups}
    assert "pre" in {group.name for group in groups} | reasons.keys()


def test_a_recurrent_layer_costs_its_matrices_at_every_step() -> None:
    model = series(nn.LSTM, "last step", batch_first=True)
    macs = macs_by_module(model, torch.randn(1, 7, 5))
    assert macs["rnn"] == 7 * 4 * 32 * (24 + 32)
    assert macs[""] == macs["rnn"] + 7 * 5 * 24 + 32 * 3


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "bn_scale", "random"])
def test_the_unit_that_does_nothing_has_the_lowest_importance(criterion) -> None:
    model, inputs = series(nn.GRU, "mean", batch_first=True, bidirectional=True), torch.randn(4, 7, 5)
    with torch.no_grad():
        for name, weight in model.rnn.named_parameters():
            if name.startswith("weight"):
                weight.unflatten(0, (3, 32))[:, 9] = 0
            if name.startswith("weight_hh"):
                weight[:, 9] = 0
        model.head.weight.unflatten(1, (2, 32))[:, :, 9] = 0
    model(inputs).square().mean().backward()
    graph = ChannelGraph(model, inputs[:1])
    scores = get_criterion(criterion).channels(graph.groups["rnn"], "rnn", Scoring(has_gradients=True))
    assert scores.shape == (32,)
    assert criterion == "random" or int(scores.argmin()) == 9


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_reconstruction_loses_nothing_where_a_kept_unit_computes_the_same(kind) -> None:
    """Units 8 to 15 are duplicates of 0 to 7 but for what reads them, in both layers and directions."""
    torch.manual_seed(0)
    model = free_layers(Series(kind, "mean", num_layers=2, batch_first=True, bidirectional=True), torch.randn(1, 7, 5))
    inputs, twins = torch.randn(6, 7, 5), list(range(8, 16))
    with torch.no_grad():
        for layer in model.rnn:
            for parameter in layer.parameters():
                gates = parameter.view(-1, 32, *parameter.shape[1:])
                gates[:, 8:16] = gates[:, :8]
        expected = model(inputs)
    graph = ChannelGraph(model, inputs[:1])
    lost = {"rnn.0": twins, "rnn.1": twins}
    reconstruct_channels(graph, lost, [inputs[:3], inputs[3:]])
    graph.remove(lost)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-5)


class Tutorial(nn.Module):
    """A network as tutorials write it: the first states are zeros of numbers that it keeps."""

    def __init__(self, first):
        super().__init__()
        self.hidden_size, self.num_layers = 32, 2
        self.lstm = nn.LSTM(6, self.hidden_size, self.num_layers, batch_first=True)
        self.fc = nn.Linear(self.hidden_size, 3)
        self.first = first(self.num_layers, 1, self.hidden_size)

    def forward(self, x):
        state = self.first.expand(-1, x.size(0), -1)
        return self.fc(self.lstm(x, (state, torch.zeros(self.num_layers, x.size(0), self.hidden_size)))[0][:, -1, :])


def test_zeros_of_a_written_size_do_not_keep_units() -> None:
    inputs = torch.randn(3, 9, 6)
    model = free_layers(Tutorial(torch.zeros).eval(), inputs[:1])
    groups, reasons = find_channel_groups(model, inputs[:1])
    assert [(group.name, group.channels) for group in groups] == [("lstm.0", 32), ("lstm.1", 32)], reasons
    assert prove_groups(model, inputs, groups)[1] == {}


def test_a_first_state_that_is_learned_stays() -> None:
    original = Tutorial(lambda *shape: nn.Parameter(torch.zeros(shape))).eval()
    model = free_layers(original, torch.randn(1, 9, 6))
    nn.init.normal_(model.first)
    original.first.data = model.first.data
    inputs = torch.randn(3, 9, 6)
    torch.testing.assert_close(model(inputs), original(inputs))
