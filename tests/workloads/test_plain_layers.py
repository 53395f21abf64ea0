"""Layers of a subclass are what they compute, as the layers that timm derives from torch's."""

import copy

import pytest
import torch
from slimfront.spaces.models.layers import LAYER_KINDS, find_layers
from slimfront.workloads.plain_layers import LAYERS, plain_layers, why_not_plain
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


class Scripted(nn.Linear):
    """The same as its base class, written anew."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class SamePadding(nn.Conv2d):
    """Pads as it runs, which for a kernel of 1x1 is nothing."""

    def forward(self, input: Tensor) -> Tensor:
        sides = [size - 1 for size in self.kernel_size]
        padded = functional.pad(
            input, [sides[1] // 2, sides[1] - sides[1] // 2, sides[0] // 2, sides[0] - sides[0] // 2]
        )
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardized(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Clipped(nn.Linear):
    """The same on small numbers."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(-50, 50)


class DropConnected(nn.Linear):
    """The same in evaluation mode."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, functional.dropout(self.weight, 0.5, self.training), self.bias)


class Adapted(nn.Linear):
    """The same as long as its adapter is not trained."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.down(input) @ self.up.T


def test_the_kinds_of_layers_are_those_of_a_policy():
    assert set(LAYERS) == set(LAYER_KINDS)


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (Scripted(6, 4), (2, 6), None),
        (SamePadding(3, 4, 1), (2, 3, 5, 5), None),
        (SamePadding(3, 4, 3), (2, 3, 5, 5), "SamePadding computes something else than its base class nn.Conv2d"),
        (Standardized(3, 4, 1), (2, 3, 5, 5), "Standardized computes something else"),
        (Clipped(6, 4), (2, 6), "Clipped computes something else"),
        (DropConnected(6, 4), (2, 6), "DropConnected computes something else"),
        (Adapted(6, 4), (2, 6), "Adapted has more than the weight and bias of nn.Linear: down, up"),
        (weight_norm(nn.Linear(6, 4)), (2, 6), "its weight is computed from other parameters in every pass"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_is_its_base_class_where_it_computes_the_same(layer, shape, reason):
    why = why_not_plain(layer.eval(), torch.randn(shape))
    assert why is None if reason is None else why.startswith(reason)
    assert not layer.training


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *layers, nn.Flatten(), Scripted(8 * 36, 4))


def test_the_layers_of_a_subclass_are_taken_up_with_their_weights():
    model = network(SamePadding(8, 8, 1), Standardized(8, 8, 1)).eval()
    before, image = copy.deepcopy(model), torch.randn(1, 3, 8, 8)
    plain = plain_layers(model, image)
    assert [layer.name for layer in find_layers(plain, image)] == ["0", "2", "5"]
    assert torch.equal(plain(image), model(image))
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
    only_torchs_own = nn.Sequential(nn.Linear(2, 2))
    assert plain_layers(only_torchs_own, torch.zeros(1, 2)) is only_torchs_own


def test_a_model_that_reads_more_of_a_layer_than_its_base_class_has_keeps_it():
    class Named(Scripted):
        def name(self) -> str:
            return "mine"

    class Reads(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * len(self[0].name())

    model = Reads(Named(4, 2))
    assert plain_layers(model, torch.randn(1, 4)) is model


class Transposed(nn.Module):
    """A linear layer with its weight transposed, as GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 6), self.weight).view(*x.shape[:-1], 8)


class Adapted(nn.Linear):
    """Low-rank adaptation of the layer itself, merged into its weight or added to its output."""

    def __init__(self, merged: bool) -> None:
        super().__init__(6, 8)
        self.down, self.up, self.merged = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.randn(8, 1)), merged

    def forward(self, input: Tensor) -> Tensor:
        plain = super().forward(input)
        return plain if self.merged else plain + input @ self.down.T @ self.up.T


class Wrapped(nn.Module):
    """Low-rank adaptation around a layer, as peft has it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = nn.Linear(6, 8), nn.Linear(6, 1, False), nn.Linear(1, 8, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Bounded(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-3, 3)


@pytest.mark.parametrize("tokens", [(1, 6), (1, 3, 6)], ids=str)
@pytest.mark.parametrize("make", [Transposed, lambda: Adapted(True), lambda: Adapted(False), Wrapped])
def test_what_computes_a_linear_layer_is_one(make, tokens):
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.ReLU(), nn.Linear(8, 2)).eval()
    plain = plain_layers(model, torch.randn(tokens))
    assert [layer.name for layer in find_layers(plain, torch.randn(tokens))] == ["0", "2"]
    inputs = torch.randn(5, *tokens[1:])
    torch.testing.assert_close(plain(inputs), model(inputs))


def test_what_computes_more_than_a_linear_layer_is_left_alone():
    model = nn.Sequential(Bounded(), nn.Linear(8, 2)).eval()
    assert plain_layers(model, torch.randn(1, 6)) is model
