"""Layers of small networks, their multiply-adds worked out by hand."""

import torch
from slimfront.spaces.layers import Layer, find_layers, macs_by_module, why_untouched
from torch import Tensor, nn
from torch.nn import functional


class Small(nn.Module):
    """Maps [n, 3, 8, 8] to [n, 10] by a plain, a strided grouped and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4, bias=False))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.fc = nn.Linear(256, 10)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.depthwise(self.body(self.stem(x))).flatten(1))


def test_layers_of_a_small_network_by_hand():
    layers = find_layers(Small(), torch.zeros(1, 3, 8, 8))
    assert layers == [
        # outputs x pixels x inputs per output
        Layer("stem", "conv2d", "", 8 * 27, 8 * 64 * 27, sparsifiable_2_4=False),
        Layer("body.1", "conv2d", "body", 16 * 18, 16 * 16 * 18, sparsifiable_2_4=False),
        Layer("depthwise", "conv2d", "", 16 * 9, 16 * 16 * 9, sparsifiable_2_4=False),
        Layer("fc", "linear", "", 2560, 2560, sparsifiable_2_4=True),
    ]


def test_convolutions_of_one_and_three_dimensions():
    one = find_layers(nn.Sequential(nn.Conv1d(4, 6, 5)), torch.zeros(1, 4, 9))
    assert one == [Layer("0", "conv1d", "", 120, 5 * 120, sparsifiable_2_4=True)]
    three = find_layers(nn.Sequential(nn.Conv3d(2, 3, 2)), torch.zeros(1, 2, 3, 3, 3))
    assert three == [Layer("0", "conv3d", "", 48, 8 * 48, sparsifiable_2_4=True)]


def test_a_linear_layer_is_counted_once_per_token():
    layers = find_layers(nn.Sequential(nn.Linear(8, 6)), torch.zeros(1, 5, 8))
    assert [(layer.weights, layer.macs) for layer in layers] == [(48, 5 * 48)]


def test_the_whole_model_has_the_empty_path():
    macs = macs_by_module(Small(), torch.zeros(1, 3, 8, 8))
    layers = ("stem", "body.1", "depthwise", "fc")
    assert macs[""] == sum(macs[name] for name in layers) == 13_824 + 4_608 + 2_304 + 2_560
    assert macs["body"] == macs["body.1"]


class Odd(nn.Module):
    """Layers called twice, one whose weight is used without calling it, and an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.convolved_twice = nn.Conv1d(8, 8, 1)
        self.borrowed = nn.Linear(8, 8)
        self.once = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x).relu())
        x = self.convolved_twice(self.convolved_twice(x.unsqueeze(-1))).squeeze(-1)
        return self.once(functional.linear(x, self.borrowed.weight))


def test_only_layers_that_run_can_be_given_a_policy_and_convolutions_only_where_they_run_once():
    assert [layer.name for layer in find_layers(Odd(), torch.zeros(1, 8))] == ["twice", "once"]


class Scaled(nn.Linear):
    """A linear layer of the user's own."""


class Many(nn.Module):
    """Maps [n, 4, 8] to [n, 4, 8] with all kinds of weights beside one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.scale = nn.Parameter(torch.zeros(1, 4, 8)), nn.Parameter(torch.ones(8, 1, 1))
        self.table, self.up = nn.Embedding(4, 8), nn.ConvTranspose1d(4, 4, 1)
        self.attention, self.rnn = nn.MultiheadAttention(8, 2, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.norm, self.own, self.fc = nn.LayerNorm((4, 8)), Scaled(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(x + self.position + self.table.weight))
        return self.fc(self.own(self.attention(x, x.flip(1), x)[0] + self.rnn(x)[0]))


def test_every_other_weight_has_its_reason():
    reasons = why_untouched(Many(), torch.zeros(1, 4, 8))
    taken_up = "only convolutions (Conv1d to Conv3d) and linear layers are taken up"
    attends = "an attention that reads several inputs, takes masks or hides from hooks has no layers of its own"
    assert reasons == {
        "Many": f"position of Many: {taken_up}",
        "table": f"weight of Embedding: {taken_up}",
        "up": f"weight of ConvTranspose1d: {taken_up}",
        "attention": attends,
        "attention.out_proj": "NonDynamicallyQuantizableLinear is a subclass of nn.Linear, which may compute something else",
        "rnn": "the matrices of nn.GRU are no linear layers; slimfront.workloads.digits_rnn is written with such",
        "norm": f"weight, bias of LayerNorm: {taken_up}",
        "own": "Scaled is a subclass of nn.Linear, which may compute something else",
    }


def test_layers_that_are_left_out_have_their_reason():
    assert why_untouched(Odd(), torch.zeros(1, 8)) == {
        "convolved_twice": "a convolution that runs 2 times in a pass",
        "borrowed": "it is never called as a layer",
    }
