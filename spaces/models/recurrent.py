"""Recurrent layers of PyTorch: where their weights hold hidden units and inputs, and the removal of either.

A hidden unit is all that Wen et al. 2018, "Learning Intrinsic Sparse Structures within LSTM", arXiv:1709.05027, remove together: its
row in every gate, its column of the matrices that read the state, and what later layers read of it. A layer has one number of
units, which both directions and all layers of a stack share: unit i is removed from each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RecurrentLayer = nn.GRU | nn.LSTM | nn.RNN

RECURRENT_KINDS: dict[type[nn.Module], str] = {nn.GRU: "gru", nn.LSTM: "lstm", nn.RNN: "rnn"}
"""The recurrent layers whose units can be removed, and what they are called."""

GATES: dict[type[nn.Module], int] = {nn.GRU: 3, nn.LSTM: 4, nn.RNN: 1}
"""How many rows of its matrices belong to a unit."""


@dataclass(frozen=True)
class Place:
    """A dimension of a parameter along which it holds channels, all of them `copies` times, one copy after another."""

    parameter: str
    dim: int
    copies: int = 1

    def numbers(self, channels: Sequence[int], of: int) -> list[int]:
        """The numbers along the dimension of some `channels` of `of`, copy by copy."""
        return [copy * of + channel for copy in range(self.copies) for channel in channels]


def is_recurrent(module: object) -> bool:
    """Whether units of this module can be removed; one with projected states (`proj_size`) has two numbers of units."""
    return type(module) in RECURRENT_KINDS and not getattr(module, "proj_size", 0)


def is_single_layer(module: object) -> bool:
    """Whether this is a recurrent layer and not a stack of several in one module, whose matrices differ in shape."""
    return isinstance(module, RecurrentLayer) and is_recurrent(module) and module.num_layers == 1


def matrix_names(layer: RecurrentLayer) -> list[str]:
    """The parameters that are matrices."""
    return [name for name in layer._parameters if name.startswith("weight")]


def matrix_shape(layer: RecurrentLayer) -> tuple[int, int]:
    """Of the matrices of a single layer next to each other: [directions x gates x units, inputs + units]."""
    rows = GATES[type(layer)] * layer.hidden_size * (2 if layer.bidirectional else 1)
    return rows, layer.input_size + layer.hidden_size


def places(layer: RecurrentLayer, makes: bool) -> list[Place]:
    """Where a layer's parameters hold its units (`makes`), or the channels of its input."""
    suffixes = _suffixes(layer)
    if not makes:
        return [Place(f"weight_ih_{suffix}", 1) for suffix in suffixes if suffix.startswith("l0")]
    return [place for suffix in suffixes for place in _units(layer, suffix)]


def reading_places(layer: RecurrentLayer) -> list[Place]:
    """Those of the units' places that read units: of the step before, or of the layer below in a stack."""
    return [place for place in places(layer, makes=True) if place.dim == 1]


def _suffixes(layer: RecurrentLayer) -> list[str]:
    ends = ("", "_reverse") if layer.bidirectional else ("",)
    return [f"l{depth}{end}" for depth in range(layer.num_layers) for end in ends]


def _units(layer: RecurrentLayer, suffix: str) -> Iterator[Place]:
    gates = GATES[type(layer)]
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if layer.bias else ("weight_ih", "weight_hh")
    yield from (Place(f"{kind}_{suffix}", 0, gates) for kind in kinds)
    yield Place(f"weight_hh_{suffix}", 1)
    if not suffix.startswith("l0"):  # it reads the units of the layer below, of both directions
        yield Place(f"weight_ih_{suffix}", 1, 2 if layer.bidirectional else 1)


def channels_of(layer: RecurrentLayer, makes: bool) -> int:
    """How many units a layer has (`makes`), or channels its input."""
    return layer.hidden_size if makes else layer.input_size


def remove_channels_of(layer: RecurrentLayer, lost: Iterable[int], makes: bool) -> None:
    """Take units (`makes`) or channels of the input out of a layer, in place."""
    gone, of = set(lost), channels_of(layer, makes)
    kept = [channel for channel in range(of) if channel not in gone]
    for place in places(layer, makes):
        _select(layer, place, place.numbers(kept, of))
    if makes:
        layer.hidden_size = len(kept)
    else:
        layer.input_size = len(kept)


def _select(layer: RecurrentLayer, place: Place, numbers: Sequence[int]) -> None:
    old: nn.Parameter = getattr(layer, place.parameter)
    index = torch.tensor(numbers, device=old.device)
    new = nn.Parameter(old.detach().index_select(place.dim, index), old.requires_grad)
    if old.grad is not None:
        new.grad = old.grad.index_select(place.dim, index)
    setattr(layer, place.parameter, new)


def weights_by_channel(layer: RecurrentLayer, makes: bool) -> Iterator[tuple[nn.Parameter, Place]]:
    """The matrices of a layer with the places of its units (`makes`) or of its input's channels in them."""
    for place in places(layer, makes):
        if place.parameter.startswith("weight"):
            yield getattr(layer, place.parameter), place


def summed_by_channel(values: Tensor, place: Place, of: int) -> Tensor:
    """Sums [of] of a matrix's `values` over all that belongs to each of `of` channels."""
    other = values.sum(1 - place.dim)
    return other.view(place.copies, of).sum(0)
