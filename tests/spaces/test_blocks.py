"""Blocks that may go: a model without them computes what it does where they pass on what they read."""

import pytest
import torch
from slimfront.spaces.models.blocks import examine_blocks
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.scale = nn.Linear(8, 8), nn.Linear(8, 8), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5) + self.two(self.one(x).relu())


class Stack(nn.Module):
    """Two blocks in a list, of whose first forward reads more than its call returns, in one of several ways."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.fc, self.reads = nn.ModuleList([Block(), Block()]), nn.Linear(8, 3), reads

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.blocks
        x = x + 1.0
        made = second(first(x.clone()))
        if self.reads == "an attribute":
            made = made * first.scale
        if self.reads == "a layer":
            made = made + first.one(x)
        if self.reads == "its kind":
            made = made * (2.0 if isinstance(first, Block) else 1.0)
        return self.fc(made)


@pytest.mark.parametrize(
    ("reads", "why"),
    [
        ("nothing", None),
        ("an attribute", "without it forward fails: 'RemovedBlock' object has no attribute 'scale'"),
        ("a layer", "without it forward fails: 'RemovedBlock' object has no attribute 'one'"),
        ("its kind", "forward reads more of it than it returns"),
    ],
)
def test_a_block_may_go_if_forward_reads_nothing_else_of_it(reads, why):
    model, example = Stack(reads).eval(), torch.randn(1, 8)
    before = dict(model.named_modules())
    found, fixed = examine_blocks(model, example)
    assert found == (["blocks.0", "blocks.1"] if why is None else ["blocks.1"])
    assert fixed == ({} if why is None else {"blocks.0": why})
    assert dict(model.named_modules()) == before
