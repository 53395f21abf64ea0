"""Attributes of modules that are restored after something changed them, at the cost of no copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

_HELD = ("_parameters", "_buffers", "_modules")


@contextmanager
def restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Have the attributes, parameters and buffers of modules be at the end what they are now."""
    before = [_Attributes(module) for module in modules]
    try:
        yield
    finally:
        for attributes in before:
            attributes.restore()


class _Attributes:
    """The attributes, parameters and buffers of a module, to set it back to."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = vars(module).copy()
        # Torch-Pruning counts down the lists of its own modules in place, and models keep what they computed in dictionaries.
        self._contents = [(value, value.copy()) for value in self._values.values() if type(value) in (list, dict)]
        self._held = {name: dict(vars(module)[name]) for name in _HELD}
        own = [*module._parameters.values(), *module._buffers.values()]
        self._data = [(tensor, tensor.data) for tensor in own if tensor is not None]

    def restore(self) -> None:
        vars(self._module).clear()
        vars(self._module).update(self._values)
        for value, content in self._contents:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        for name, held in self._held.items():
            vars(self._module)[name].clear()
            vars(self._module)[name].update(held)
        for tensor, data in self._data:
            tensor.data = data  # a parameter may be cut in place, instead of replaced by a new one
