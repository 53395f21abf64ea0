"""Channel selection by LASSO, by hand and as a policy's channel reduction."""

import copy

import pytest
import torch
from slimfront.compression.pruning.channel_lasso import lasso_scores, path_scores
from slimfront.compression.pruning.channels import remove_channels
from slimfront.core.errors import CompressionError
from slimfront.spaces.models.channel_graph import ChannelGraph
from torch import Tensor, nn


def network(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval()


READERS = {
    "linear": lambda: network(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)),
    "conv": lambda: network(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 3, padding=1, stride=2)),
    "conv1d": lambda: network(nn.Conv1d(2, 16, 3), nn.ReLU(), nn.Conv1d(16, 5, 3, dilation=2, padding="same")),
    "flattened": lambda: network(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 3)),
    "circular": lambda: network(nn.Conv2d(2, 16, 3), nn.Conv2d(16, 5, 3, padding=1, padding_mode="circular")),
}
SHAPES = {"linear": (4,), "conv1d": (2, 8)}


def test_of_independent_channels_those_of_the_largest_contribution_stay():
    energies = torch.tensor([3.0, 1.0, 4.0, 2.0], dtype=torch.float64)
    assert path_scores(torch.diag(energies), 2).argsort(descending=True).tolist() == [2, 0, 3, 1]


def test_dead_channels_have_the_lowest_score():
    gram = torch.diag(torch.tensor([1.0, 0.0, 2.0, 3.0], dtype=torch.float64))
    scores = path_scores(gram, 2)
    assert scores.argsort().tolist()[0] == 1
    assert scores.argsort(descending=True).tolist()[:2] == [3, 2]


@pytest.mark.parametrize("kind", READERS)
def test_duplicates_are_what_goes(kind):
    """Half of the channels copy the others and are read with the same weights: what is left makes up for all of them."""
    model, shape = READERS[kind](), SHAPES.get(kind, (2, 8, 8))
    reader = model[-1]
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = model[0].weight[:8], model[0].bias[:8]
        wide = reader.weight.view(reader.weight.shape[0], 16, -1)
        wide[:, 8:] = 0.01 * torch.randn_like(wide[:, 8:])
    inputs = torch.randn(40, *shape)
    slim = copy.deepcopy(model)
    remove_channels(slim, inputs[:1], {"0": 8}, reduction="lasso", batches=inputs.split(10))
    lost = (slim(inputs) - model(inputs)).square().mean() / model(inputs).var()
    assert slim[0].weight.shape[0] == 8
    assert lost < 0.02


def test_the_lasso_asks_for_data_and_leaves_what_it_cannot_read_to_the_criterion():
    model = READERS["linear"]()
    with pytest.raises(CompressionError, match=r"^reconstructing channels needs the calibration data"):
        remove_channels(model, torch.randn(1, 4), {"0": 8}, reduction="lasso")
    grouped = network(nn.Conv2d(2, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 4, 3, groups=2))
    inputs = torch.randn(8, 2, 9, 9)
    graph = ChannelGraph(grouped, inputs[:1])
    assert lasso_scores(graph, {graph.root_of("0"): 8}, [inputs]) == {}
    remove_channels(grouped, inputs[:1], {"0": 8}, reduction="lasso", batches=[inputs])
    assert grouped(inputs).shape[:2] == (8, 4)


class Branching(nn.Module):
    """A group that two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x).relu()
        return torch.cat([self.first(x), self.second(x)], dim=1)


def test_all_readers_have_a_say():
    torch.manual_seed(0)
    model, inputs = Branching().eval(), torch.randn(64, 4)
    with torch.no_grad():  # the second layer reads the last eight channels alone, the first hardly anything of them
        model.second.weight[:, :8] = 0
        model.first.weight[:, 8:] *= 1e-3
        model.first.weight *= 1e-3
        model.second.weight[:, 12:] = 0
        model.first.weight[:, :4] = 0
    scores = lasso_scores(ChannelGraph(model, inputs[:1]), {"make": 8}, [inputs])["make"]
    kept = set(scores.argsort(descending=True)[:8].tolist())
    assert kept <= set(range(4, 12)) | {12, 13, 14, 15}
    assert len(kept & {4, 5, 6, 7}) >= 2
    assert len(kept & {8, 9, 10, 11}) >= 2
