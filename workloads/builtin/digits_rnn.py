"""The reference networks of the `digits-gru` and `digits-lstm` workloads, which read an image row by row."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RecurrentLayer(nn.Module):
    """A recurrent layer whose matrices are linear layers, one for each gate and for input and state.

    Maps [n, steps, inputs] to the states [n, steps, hidden], from a state of zeros. Unlike in `torch.nn.GRU`, a policy can
    quantize the matrices and remove hidden units; the steps are unrolled when the model is lowered.
    """

    gates: tuple[str, ...]

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.from_input = nn.ModuleDict({gate: nn.Linear(inputs, hidden) for gate in self.gates})
        self.from_state = nn.ModuleDict({gate: nn.Linear(hidden, hidden) for gate in self.gates})

    def forward(self, x: Tensor) -> Tensor:
        inputs = [layer(x).unbind(1) for layer in self.from_input.values()]
        state = cell = torch.zeros_like(inputs[0][0])
        states = []
        for step in zip(*inputs, strict=True):
            state, cell = self.step(step, [layer(state) for layer in self.from_state.values()], state, cell)
            states.append(state)
        return torch.cat(states, dim=-1).unflatten(-1, (len(states), -1))

    def step(self, x: tuple[Tensor, ...], h: list[Tensor], state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The next state and cell, all [n, hidden], from what each gate makes of the input and of the state."""
        raise NotImplementedError


class GRU(RecurrentLayer):
    """Gated recurrent units (Cho et al. 2014, arXiv:1406.1078) with PyTorch's equations; the cell is not used."""

    gates = ("reset", "keep", "new")

    def step(self, x: tuple[Tensor, ...], h: list[Tensor], state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        reset, keep = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
        new = torch.tanh(x[2] + reset * h[2])
        return new + keep * (state - new), cell


class LSTM(RecurrentLayer):
    """Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

    gates = ("admit", "forget", "new", "out")

    def step(self, x: tuple[Tensor, ...], h: list[Tensor], state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        admit, forget, new, out = (of_input + of_state for of_input, of_state in zip(x, h, strict=True))
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(admit) * torch.tanh(new)
        return torch.sigmoid(out) * torch.tanh(cell), cell


class DigitsRNN(nn.Module):
    """Two recurrent layers over the 16 rows of a one-channel 16x16 image, and a classifier of the last state.

    Maps [n, 1, 16, 16] to logits [n, 10].
    """

    def __init__(self, layer: type[RecurrentLayer] = GRU, hidden: int = 128) -> None:
        super().__init__()
        self.rnn1 = layer(16, hidden)
        self.rnn2 = layer(hidden, hidden)
        self.fc = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn2(self.rnn1(x.squeeze(1)))[:, -1])
