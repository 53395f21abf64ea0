"""Hidden units of recurrent layers masked where they are, for the proof that removing them computes the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...spaces.models.recurrent import Place, RecurrentLayer, is_recurrent, reading_places


@contextmanager
def masked_units(model: nn.Module, copies: Mapping[str, Mapping[int, int]]) -> Iterator[None]:
    """Have no recurrent layer read its lost units, neither of the step before nor of the layer below, and return doubles for them.

    Args:
        copies: path of a layer -> (lost unit -> kept unit that it duplicates).
    """
    with ExitStack() as stack:
        for path, doubles in copies.items():
            layer: Any = dict(model.named_modules()).get(path)
            if doubles and is_recurrent(layer):
                for place in reading_places(layer):
                    stack.enter_context(_columns_zeroed(layer, place, sorted(doubles)))
                stack.callback(layer.register_forward_hook(_returning(doubles)).remove)
        yield


@contextmanager
def _columns_zeroed(layer: RecurrentLayer, place: Place, units: Sequence[int]) -> Iterator[None]:
    weight = layer.get_parameter(place.parameter)
    before = weight.data
    columns = torch.tensor(place.numbers(units, layer.hidden_size), device=before.device)
    weight.data = before.index_fill(place.dim, columns, 0.0)
    try:
        yield
    finally:
        weight.data = before


def _returning(doubles: Mapping[int, int]) -> Any:
    def hook(layer: Any, _inputs: object, output: Any) -> Any:
        made, states = output
        doubled = partial(_with_doubles, doubles=doubles, units=layer.hidden_size)
        whole = PackedSequence(doubled(made.data), *made[1:]) if isinstance(made, PackedSequence) else doubled(made)
        return whole, tuple(map(doubled, states)) if isinstance(states, tuple) else doubled(states)

    return hook


def _with_doubles(values: Tensor, doubles: Mapping[int, int], units: int) -> Tensor:
    """`values` [.., directions x units] with the kept units in the place of those that duplicate them."""
    order = [doubles.get(unit, unit) for unit in range(units)]
    index = torch.tensor([unit + start for start in range(0, values.shape[-1], units) for unit in order])
    return values.index_select(-1, index.to(values.device))
