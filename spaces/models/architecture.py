"""What a model computes, its weights aside: two models of one architecture export to one graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

PLAIN = (bool, int, float, str, tuple, list, type(None), FunctionType, BuiltinFunctionType)


def architecture(model: nn.Module) -> tuple:
    """Every module's path, type and plain settings, such as strides, numbers of heads and functions it calls, and how the model is
    called with batches."""
    parts = tuple((path, type(module), _settings(module)) for path, module in model.named_modules())
    return (*parts, *_call(model))


def _call(model: nn.Module) -> list[tuple]:
    """The keys of what calls a model and reads its result, where that is not the model itself; see `workloads.calls`."""
    return [each.call_key for each in _callers(model)]


def _callers(model: nn.Module) -> list[Any]:
    own = getattr(vars(model).get("forward"), "__self__", None)
    return [each for each in (own, *model._forward_hooks.values()) if hasattr(each, "call_key")]


@contextmanager
def every_output(model: nn.Module) -> Iterator[None]:
    """Have a model return all that it computes, and not only the outputs that its owner named: the layers of the others run too, and
    lose channels with the layers before them."""
    readers = [getattr(each, "outputs", each) for each in _callers(model)]
    wanted = [reader.wanted for reader in readers]
    for reader in readers:
        reader.wanted = ()
    try:
        yield
    finally:
        for reader, names in zip(readers, wanted, strict=True):
            reader.wanted = names


def _settings(module: nn.Module) -> str:
    return repr(sorted((name, value) for name, value in vars(module).items() if type(value) in PLAIN))
