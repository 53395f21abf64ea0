"""What a model computes, its weights aside: two models of one architecture export to one graph."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType

from torch import nn

PLAIN = (bool, int, float, str, tuple, list, type(None), FunctionType, BuiltinFunctionType)


def architecture(model: nn.Module) -> tuple:
    """Every module's path, type and plain settings, such as strides, numbers of heads and functions it calls."""
    return tuple((path, type(module), _settings(module)) for path, module in model.named_modules())


def _settings(module: nn.Module) -> str:
    return repr(sorted((name, value) for name, value in vars(module).items() if type(value) in PLAIN))
