"""The float graph of a model, exported once per architecture and weights: policies that differ in bits share it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
    weights: bytes
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
        weights = _digest(model.state_dict())
        entry = self._entries.pop(key, None)
        if entry is None or entry.weights != weights:
            entry = _Entry(weights, self._export(model, example_input))
        self._entries[key] = entry
        while len(self._entries) > ENTRIES:
            self._entries.popitem(last=False)
        return entry.graph


def _digest(weights: Mapping[str, Tensor]) -> bytes:
    """What tells weights apart, where a copy of all of them would take as much memory as the model."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()
