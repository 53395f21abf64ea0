"""Why weights are none that a policy may touch."""

import torch
from slimfront.studies.inspection.untouched import ATTENTION, TRANSPOSED, why_untouched
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


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


class Scaled(nn.Linear):
    """A linear layer of the user's own, which computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Many(nn.Module):
    """Maps [n, 4, 8] to [n, 4, 8] with all kinds of weights next to one linear layer."""

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
    compressed = "only convolutions (Conv1d to Conv3d), linear layers and embeddings are compressed"
    assert reasons == {
        "Many": f"position of Many: {compressed}",
        "table": "it is never called as a layer",
        "up": f"nn.ConvTranspose1d {TRANSPOSED}",
        "attention": ATTENTION,
        "attention.out_proj": "it is never called as a layer",
        "norm": f"weight, bias of LayerNorm: {compressed}",
        "own": "Scaled computes something else than its base class nn.Linear, which could be compressed",
    }


def test_layers_that_are_left_out_have_their_reason():
    assert why_untouched(Odd(), torch.zeros(1, 8)) == {
        "borrowed": "it is never called as a layer",
    }


def test_a_parametrized_layer_is_named_once_with_what_makes_it_a_plain_one():
    model = nn.Sequential(weight_norm(nn.Conv1d(2, 4, 3)), nn.Conv1d(4, 2, 1))
    reasons = why_untouched(model, torch.zeros(1, 2, 8))
    assert list(reasons) == ["0"]
    assert "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')" in reasons["0"]


def test_recurrent_layers_that_are_left_out_have_their_reason():
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.projected, self.cell = nn.GRU(8, 8), nn.LSTM(8, 8, proj_size=4), nn.GRUCell(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(self.projected(self.rnn(x)[0])[0][0])

    reasons = why_untouched(Steps(), torch.zeros(3, 1, 8))
    assert reasons.keys() == {"projected", "cell"}
    assert "proj_size" in reasons["projected"]
    assert "nn.GRU runs all steps and is compressed" in reasons["cell"]
