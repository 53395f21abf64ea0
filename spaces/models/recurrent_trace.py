"""Recurrent layers in a dependency graph: each as one operation, however many steps it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...core.hooks import removed_after
from .recurrent import RecurrentLayer, channels_of, remove_channels_of


class RecurrentPruner(tp.BasePruningFunc):
    """Torch-Pruning's handler of a recurrent layer; what it makes are its units, in all outputs and directions."""

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        remove_channels_of(layer, idxs, makes=False)
        return layer

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        remove_channels_of(layer, idxs, makes=True)
        return layer

    def get_in_channels(self, layer: Any) -> int:
        return channels_of(layer, makes=False)

    def get_out_channels(self, layer: Any) -> int:
        return channels_of(layer, makes=True)


def makes_units(dep: Any) -> bool:
    """Whether a dependency is on the units of a recurrent layer, and not on the channels of its input."""
    return getattr(dep.handler, "__func__", None) is RecurrentPruner.prune_out_channels


class _Units(torch.autograd.Function):
    """The operation that a layer is in the graph: from its input, and a parameter for the gradient's sake, to its units."""

    @staticmethod
    def forward(ctx: Any, read: Tensor, parameter: Tensor, *made: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.clone() for each in made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("a trace of dependencies has no gradients")


class _Tied(_Units):
    """An element-wise operation of a first state and the units, whose channels have the same numbers."""


def _applied(operation: type[_Units], *tensors: Tensor) -> tuple[Tensor, ...]:
    apply: Any = operation.apply
    return apply(*tensors)


@contextmanager
def units_alone(layers: Iterable[RecurrentLayer]) -> Iterator[None]:
    """Have each layer return, in one operation on its input, its units by direction, and its last states.

    Torch-Pruning's hook, which comes next, takes that operation for the layer; `outputs_as_called` makes the layer's outputs of them.
    """

    def units(layer: Any, args: tuple, options: dict, output: Any) -> tuple[Tensor, ...]:
        made, states = output
        read = args[0] if args else options["input"]
        directions = _values(made).split(layer.hidden_size, -1)
        parts = [*directions, *(states if isinstance(states, tuple) else (states,))]
        return _applied(_Units, _values(read), layer.weight_hh_l0, *(part.detach() for part in parts))

    with _hooked((layer, units) for layer in layers):
        yield


@contextmanager
def outputs_as_called(layers: Iterable[RecurrentLayer]) -> Iterator[None]:
    """Have each layer of `units_alone` return what its caller expects."""

    def outputs(layer: Any, args: tuple, options: dict, units: tuple[Tensor, ...]) -> Any:
        given = [*args, *options.values(), None]
        read, state = given[0], given[1]
        for first in state if isinstance(state, tuple) else (state,):
            if first is not None and first.requires_grad:
                units = _applied(_Tied, first, layer.weight_hh_l0, *units)
        directions = 2 if layer.bidirectional else 1
        made, states = units[:directions], units[directions:]
        joined = torch.cat(made, -1) if directions > 1 else made[0]
        if isinstance(read, PackedSequence):
            joined = PackedSequence(joined, *read[1:])
        return joined, (states[0] if len(states) == 1 else states)

    with _hooked((layer, outputs) for layer in layers):
        yield


@contextmanager
def _hooked(pairs: Iterable[tuple[RecurrentLayer, Any]]) -> Iterator[None]:
    hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer, hook in pairs]
    with removed_after(hooks):
        yield


def _values(sequence: Tensor | PackedSequence) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence
