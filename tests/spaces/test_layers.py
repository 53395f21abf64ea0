"""Layers of small networks, their multiply-adds worked out by hand."""

import torch
from slimfront.spaces.models.layers import Layer, find_layers, macs_by_module
from slimfront.spaces.models.unread import ELSEWHERE
from slimfront.studies.inspection.untouched import why_untouched
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


def test_layers_that_run_can_be_given_a_policy_however_often():
    assert [layer.name for layer in find_layers(Odd(), torch.zeros(1, 8))] == ["twice", "convolved_twice", "once"]


class Pooled(nn.Module):
    """A layer that runs for nothing, and one that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pooler, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x).detach()
        self.pooler(tokens)
        return self.last(tokens)


def test_a_layer_that_no_output_depends_on_is_left_out():
    model = Pooled()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert [layer.name for layer in find_layers(model, torch.randn(1, 8))] == ["first", "last"]
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


class ReadsTwice(nn.Module):
    """Reads the weight of `twice` by an operation of its own, and the shape of that of `once`."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.once(x).relu()) * len(self.once.weight)
        return self.fc(torch.nn.functional.conv2d(x, self.twice.weight, padding=1).mean((2, 3)))


def test_a_layer_whose_weight_another_operation_reads_is_left_alone():
    torch.manual_seed(0)
    model, example = ReadsTwice().eval(), torch.randn(1, 3, 6, 6)
    torch.nn.init.zeros_(model.fc.weight)  # no output shows it
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert [layer.name for layer in find_layers(model, example)] == ["once", "fc"]
    assert why_untouched(model, example) == {"twice": ELSEWHERE}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
