"""The float graph of a model, exported once per architecture and weights: policies that differ in bits share it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ....core.batch import Batch, shapes_of
from ....spaces.models.architecture import architecture

G = TypeVar("G")

ENTRIES = 2
"""The number of cached graphs: the uncompressed model's and the newest candidate's."""


@dataclass(frozen=True)
class _Entry(Generic[G]):
    weights: dict[str, Tensor]
    graph: G


class GraphCache(Generic[G]):
    """Caches the graphs of the models that were exported last.

    A hit has the same modules with the same settings, an input of the same shape and weights equal to the last bit; the
    graph it returns is the one that was stored, to be copied before it is changed. Not safe to share between threads.
    """

    def __init__(self, export: Callable[[nn.Module, Batch], G]) -> None:
        self._export = export
        self._entries: OrderedDict[tuple, _Entry[G]] = OrderedDict()

    def graph_of(self, model: nn.Module, example_input: Batch) -> G:
        """The graph of `model`, which ends in eval mode."""
        key = (architecture(model.eval()), tuple(shapes_of(example_input)))
        weights = model.state_dict()
        entry = self._entries.pop(key, None)
        if entry is None or not _equal(entry.weights, weights):
            graph = self._export(model, example_input)
            entry = _Entry({name: tensor.clone() for name, tensor in weights.items()}, graph)
        self._entries[key] = entry
        while len(self._entries) > ENTRIES:
            self._entries.popitem(last=False)
        return entry.graph


def _equal(stored: dict[str, Tensor], weights: dict[str, Tensor]) -> bool:
    return stored.keys() == weights.keys() and all(
        stored[name].shape == tensor.shape and torch.equal(stored[name], tensor) for name, tensor in weights.items()
    )
