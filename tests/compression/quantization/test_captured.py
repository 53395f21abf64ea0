"""A model captured once per architecture."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from slimfront.compression.quantization.captured import captured
from torch import Tensor, nn


class Counting(nn.Module):
    """Linear, batch-norm, linear; counts how often its forward is Python, which a captured graph's is not."""

    def __init__(self, features: int, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.runs = scale, Counter()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.norm = nn.Linear(3, features), nn.BatchNorm1d(features)
            self.last = nn.Linear(features, 2)
            self.norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        self.runs["python"] += 1
        return self.last(self.norm(self.first(x) * self.scale)) + torch.tensor([1.0, 2.0])


class Hidden(nn.Module):
    """A tensor that no state dict holds."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.offset = torch.tensor(offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.offset


INPUTS = torch.linspace(-1, 1, 12).reshape(4, 3)


def test_other_weights_of_the_same_architecture_are_not_traced_again_and_compute_their_own_outputs() -> None:
    models = [Counting(5, seed, scale=0.75) for seed in (0, 1)]
    graphs = [captured(model, INPUTS) for model in models]
    assert ["python" in model.runs for model in models] == [True, False]
    for model, graph in zip(models, graphs, strict=True):
        torch.testing.assert_close(graph(INPUTS), model(INPUTS))


@pytest.mark.parametrize("other", [Counting(6, 0), Counting(5, 0, scale=2.0)], ids=["width", "setting"])
def test_another_architecture_is_traced(other: Counting) -> None:
    captured(Counting(5, 0), INPUTS)
    torch.testing.assert_close(captured(other, INPUTS)(INPUTS), other(INPUTS))


def test_what_is_done_to_a_graph_does_not_reach_the_next_or_the_model() -> None:
    model = Counting(5, 0)
    expected = model.eval()(INPUTS)
    spoilt = captured(model, INPUTS)
    for node in spoilt.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        node.replace_all_uses_with(node.args[0])
    spoilt.recompile()
    for parameter in spoilt.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(captured(model, INPUTS)(INPUTS), expected)
    torch.testing.assert_close(model(INPUTS), expected)


def test_tensors_outside_of_the_state_are_each_models_own() -> None:
    for model in (Hidden(1.0), Hidden(2.0)):
        torch.testing.assert_close(captured(model, INPUTS)(INPUTS), model(INPUTS))
