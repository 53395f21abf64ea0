"""Operations of small models, counted by hand."""

import torch
from slimfront.spaces.models.layers import find_every_layer
from slimfront.spaces.models.operations import OTHERS, Operation, operations_of
from torch import nn


def operations(model: nn.Module, example: torch.Tensor) -> list[Operation]:
    return operations_of(model, example, find_every_layer(model, example))


def test_layers_have_their_multiply_adds_and_what_they_move() -> None:
    """Batch-norm and ReLU are the convolution's; the mean over 16 pixels of 6 channels reads 96 numbers and writes 6."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    assert operations(model, torch.zeros(1, 3, 4, 4)) == [
        Operation("0", "conv2d", 6 * 3 * 9 * 16, 6 * 3 * 9, (3 + 6) * 16),
        Operation("3", "depthwise", 6 * 9 * 16, 6 * 9, (6 + 6) * 16),
        Operation("6", "linear", 5 * 6, 5 * 6, 6 + 5),
        Operation(OTHERS, "linear", 0, 0, 96 + 6),
    ]


class Twice(nn.Module):
    """Runs one linear layer twice, then multiplies the result with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(self.fc(x).relu())
        return x @ x.transpose(1, 2)


def test_a_layer_that_runs_twice_is_dispatched_twice_and_products_elsewhere_are_counted() -> None:
    """Of [3, 4] times [4, 3]: 36 multiply-adds, 24 numbers read and 9 written."""
    layer, others = operations(Twice(), torch.zeros(1, 3, 4))
    assert layer == Operation("fc", "linear", 2 * 3 * 16, 16, 2 * (12 + 12), count=2)
    assert others == Operation(OTHERS, "linear", 36, 0, 24 + 9)


def test_attention_is_counted_as_the_operations_it_consists_of_and_stays_as_fast_as_it_was() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    *layers, others = operations(layer, torch.zeros(1, 5, 8))
    assert [each.name for each in layers] == ["linear1", "linear2"]
    projections, products = 5 * 8 * 24 + 5 * 8 * 8, 2 * 5 * 5 * 8  # into queries, keys and values, and out of them
    assert others.macs == projections + products
    assert others.count == 2 + 2 + 1 + 2  # projections, products, the softmax, two norms
    assert torch.backends.mha.get_fastpath_enabled() == before
