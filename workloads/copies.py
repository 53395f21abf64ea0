"""Copies of a user's model, and the model inside the wrappers of torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""The classes that wrap a model without computing anything, and their attribute with the model."""


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of `model`; tensors with a graph that its forward kept are copied without the graph."""
    attached = {id(value): value.detach().clone() for _, _, value in kept_tensors(model) if not value.is_leaf}
    return copy.deepcopy(model, attached)


def wrappers(model: nn.Module) -> list[str]:
    """The wrappers of the model and its parts that compute nothing, in words."""
    names = [type(module).__name__ for module in model.modules() if type(module).__name__ in WRAPPERS]
    compiled = ["compile()"] if any(module._compiled_call_impl is not None for module in model.modules()) else []
    return [*dict.fromkeys(names), *compiled]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without any of `WRAPPERS` and not compiled: the model itself where there is no wrapper, else the model inside or a copy."""
    while (inner := WRAPPERS.get(type(model).__name__)) is not None:
        model = getattr(model, inner)
    if not wrappers(model):
        return model
    plain = copied(model)  # which drops compilation in place
    for name, module in reversed([*plain.named_modules()]):
        if (inner := WRAPPERS.get(type(module).__name__)) is not None:
            owner, _, key = name.rpartition(".")
            setattr(plain.get_submodule(owner), key, getattr(module, inner))
    return plain


def kept_tensors(model: nn.Module) -> Iterator[tuple[Any, Any, Tensor]]:
    """(where, key, tensor) of what modules keep in attributes, lists and dictionaries and is not a parameter or buffer."""
    for module in model.modules():
        for key, value in [*vars(module).items()]:
            if isinstance(value, Tensor):
                yield vars(module), key, value
            elif key not in ("_parameters", "_buffers", "_modules"):
                yield from ((value, own, kept) for own, kept in _items(value) if isinstance(kept, Tensor))


def _items(container: object) -> list[tuple[Any, object]]:
    """(key or index, value) of a dictionary or a list; none of anything else."""
    if isinstance(container, dict):
        return [*container.items()]
    return [*enumerate(container)] if isinstance(container, list) else []
