"""Copies of a user's model, and the model inside the wrappers of torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn

WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Class that wraps a model without computing anything -> its attribute that holds the model."""


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of `model`; tensors that its forward left behind with their graph are copied without it."""
    attached = {id(value): value.detach().clone() for value in _attributes(model) if not value.is_leaf}
    return copy.deepcopy(model, attached)


def wrappers(model: nn.Module) -> list[str]:
    """What stands around the model or a part of it without computing anything, in words."""
    names = [type(module).__name__ for module in model.modules() if type(module).__name__ in WRAPPERS]
    compiled = ["compile()"] if any(module._compiled_call_impl is not None for module in model.modules()) else []
    return [*dict.fromkeys(names), *compiled]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without any of `WRAPPERS` and not compiled: itself where nothing is around it, else what is inside or a copy."""
    while (inner := WRAPPERS.get(type(model).__name__)) is not None:
        model = getattr(model, inner)
    if not wrappers(model):
        return model
    plain = copied(model)  # which leaves compilation in place behind
    for name, module in reversed([*plain.named_modules()]):
        if (inner := WRAPPERS.get(type(module).__name__)) is not None:
            owner, _, key = name.rpartition(".")
            setattr(plain.get_submodule(owner), key, getattr(module, inner))
    return plain


def has_attached_tensors(model: nn.Module) -> bool:
    """Whether a forward left a tensor behind with its graph, which `copy.deepcopy` refuses."""
    return any(not value.is_leaf for value in _attributes(model))


def _attributes(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that are plain attributes of modules, neither parameters nor buffers."""
    return (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
