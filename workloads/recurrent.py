"""Recurrent layers freed of what holds their numbers of hidden units: stacks, and first states whose size is written down."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten

from ..core.batch import Batch
from ..core.hooks import removed_after
from ..core.interrupts import raise_if_interrupted
from .copies import copied

Values = Tensor | PackedSequence
State = Tensor | tuple[Tensor, Tensor]

TOLERANCE = 1e-4
"""The largest difference that rounding may cause: between layers called one by one, and all by one kernel."""


class RecurrentStack(nn.ModuleList):
    """The layers of an `nn.GRU`, `nn.LSTM` or `nn.RNN`, one after another; called as the original is, and computes the same.

    Attributes:
        dropout: between layers, in training.
        only_last_state: return the last layer's states alone, which lie at -1 and, in two directions, -2 as before. The states of all
            layers in one tensor would give all of them the same number of units.
        batch_first, bidirectional, hidden_size, input_size: as in the original; the number of units is the last layer's.
    """

    def __init__(self, original: nn.RNNBase) -> None:
        super().__init__([_layer(original, depth) for depth in range(original.num_layers)])
        self.dropout = original.dropout
        self.only_last_state = False
        self.batch_first, self.bidirectional = original.batch_first, original.bidirectional
        self.train(original.training)

    @property
    def num_layers(self) -> int:
        return len(self)

    @property
    def hidden_size(self) -> int:
        return cast("nn.RNNBase", self[-1]).hidden_size

    @property
    def input_size(self) -> int:
        return cast("nn.RNNBase", self[0]).input_size

    def flatten_parameters(self) -> None:
        """Lay the weights of each layer out in one block of memory, as kernels of GPUs read them."""
        for layer in self:
            cast("nn.RNNBase", layer).flatten_parameters()

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        states = []
        for depth, layer in enumerate(self):
            input, state = layer(
                _dropped(input, self.dropout, self.training) if depth else input, self._part(hx, depth)
            )
            states.append(state)
        return input, states[-1] if self.only_last_state else _joined(states)

    def _part(self, hx: State | None, depth: int) -> State | None:
        """The first state of a layer, of those [layers x directions, ...] of all."""
        if hx is None:
            return None
        if isinstance(hx, tuple):
            return cast("State", tuple(self._part(each, depth) for each in hx))
        rows = 2 if self.bidirectional else 1
        return hx[depth * rows : (depth + 1) * rows]


def free_layers(model: nn.Module, example_input: Batch) -> nn.Module:
    """A copy of `model` in which nothing holds the numbers of units of recurrent layers where they are; the model itself where
    nothing did.

    Each layer of a stack is a module of its own, and a first state of zeros, whose size `forward` may have written down, is left to the
    layer.

    Args:
        example_input: shape [1, ...]; shows whether the states of lower layers are read, and which first states are zeros.
    """
    stacks = [name for name, module in model.named_modules() if _is_stack(module)]
    zeros = _started_from_zeros(model, example_input)
    if not stacks and not zeros:
        return model
    free = copied(model).eval()
    expected = _output(model.eval(), example_input)
    for name in stacks:
        stack = RecurrentStack(cast("nn.RNNBase", free.get_submodule(name)))
        free.set_submodule(name, stack)
        stack.only_last_state = True
        stack.only_last_state = _same(expected, _output(free, example_input))
    for name in zeros:
        free.get_submodule(name).register_forward_pre_hook(_WithoutState(), with_kwargs=True)
    return free if _same(expected, _output(free, example_input)) else model


class _WithoutState:
    """A forward pre-hook that leaves the first state of a recurrent layer out: the layer begins from zeros of its own."""

    def __call__(self, _module: nn.Module, args: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args[:1], {name: value for name, value in options.items() if name == "input"}


@torch.enable_grad()
def _started_from_zeros(model: nn.Module, example_input: Batch) -> list[str]:
    """Recurrent layers that are only ever given first states of zeros that are no parameters."""
    plain: dict[str, bool] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple, options: dict[str, Any]) -> None:
            given = [*args[1:], *(value for key, value in options.items() if key != "input")]
            states = [tensor for tensor in tree_flatten(given)[0] if isinstance(tensor, Tensor)]
            are_zeros = all(not state.requires_grad and not state.any() for state in states)
            plain[name] = plain.get(name, True) and bool(states) and are_zeros

        return hook

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.RNNBase)]
    hooks = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers]
    with removed_after(hooks):
        if layers:
            model.eval()(example_input)
    return [name for name, is_plain in plain.items() if is_plain]


@torch.no_grad()
def _output(model: nn.Module, example_input: Batch) -> Any:
    """What the model computes, None where it does not run."""
    try:
        return model(example_input)
    except Exception as error:  # the model's own code may raise anything where states are missing
        raise_if_interrupted(error)
        return None


def _same(expected: Any, found: Any) -> bool:
    """Whether two outputs agree to rounding, leaf by leaf."""
    first, structure = tree_flatten(expected)
    second, other = tree_flatten(found)
    return structure == other and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) if isinstance(a, Tensor) else a == b
        for a, b in zip(first, second, strict=True)
    )


def _is_stack(module: nn.Module) -> bool:
    return isinstance(module, (nn.GRU, nn.LSTM, nn.RNN)) and module.num_layers > 1 and not module.proj_size


def _layer(original: nn.RNNBase, depth: int) -> nn.RNNBase:
    """One layer of a stack, with the parameters of the original."""
    directions = 2 if original.bidirectional else 1
    options: dict[str, Any] = {"nonlinearity": original.nonlinearity} if isinstance(original, nn.RNN) else {}
    options |= {name: getattr(original, name) for name in ("bias", "batch_first", "bidirectional")}
    width = original.hidden_size * directions if depth else original.input_size
    kind: type[Any] = type(original)
    layer: nn.RNNBase = kind(width, original.hidden_size, device="meta", **options)
    for name in list(layer._parameters):
        setattr(layer, name, getattr(original, name.replace("_l0", f"_l{depth}")))
    return layer.train(original.training)


def _dropped(values: Values, dropout: float, training: bool) -> Values:
    if not dropout or not training:
        return values
    if isinstance(values, PackedSequence):
        return PackedSequence(functional.dropout(values.data, dropout), *values[1:])
    return functional.dropout(values, dropout)


def _joined(states: list[Any]) -> State:
    if isinstance(states[0], tuple):
        return cast("State", tuple(torch.cat(each) for each in zip(*states, strict=True)))
    return torch.cat(states)
