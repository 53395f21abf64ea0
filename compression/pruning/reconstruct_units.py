"""Reconstruction of what recurrent layers read: removed units of the step before, or removed channels of the sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...core.batch import Batch
from ...core.hooks import removed_after
from ...spaces.models.channel_graph import ChannelGraph
from ...spaces.models.recurrent import RecurrentLayer, is_single_layer


def columns_gone(graph: ChannelGraph, lost: Mapping[str, Sequence[int]]) -> dict[nn.Parameter, set[int]]:
    """Matrix of a recurrent layer -> its columns that read channels `lost` of groups."""
    gone: dict[nn.Parameter, set[int]] = {}
    for name, channels in lost.items():
        for role in graph.roles(name):
            layer = graph.model.get_submodule(role.path) if role.dim is None else None
            if isinstance(layer, RecurrentLayer) and is_single_layer(layer):
                own = {own for own, root in zip(role.own, role.roots, strict=True) if root in set(channels)}
                for weight in _matrices(layer, "weight_hh" if role.makes else "weight_ih"):
                    gone.setdefault(weight, set()).update(own)
    return gone


@torch.no_grad()
def grams_of_columns(model: nn.Module, batches: Iterable[Batch]) -> dict[nn.Parameter, Tensor]:
    """Matrix of each recurrent layer of `model` -> sum of the outer products of what it multiplies, over samples and steps, in float64."""
    grams: dict[nn.Parameter, Tensor] = {}
    with _watched(model, grams):
        for batch in batches:
            model.eval()(batch)
    return grams


@contextmanager
def _watched(model: nn.Module, grams: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    def watch(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        states = _rows(output[0]).split(layer.hidden_size, -1)
        read = [_rows(inputs[0])] * len(states)
        for kind, values in (("weight_ih", read), ("weight_hh", states)):
            for weight, rows in zip(_matrices(layer, kind), values, strict=True):
                grams[weight] = grams.get(weight, 0.0) + rows.T @ rows

    layers = [module for module in model.modules() if is_single_layer(module)]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    with removed_after(hooks):
        yield


def _rows(sequence: Tensor | PackedSequence) -> Tensor:
    """[samples and steps, channels]."""
    values = sequence.data if isinstance(sequence, PackedSequence) else sequence
    return values.flatten(0, -2).double()


def _matrices(layer: RecurrentLayer, kind: str) -> list[nn.Parameter]:
    """The matrices of a kind, forward and perhaps backward."""
    return [parameter for name, parameter in layer.named_parameters() if name.startswith(kind)]
