"""What an exception of a model says and where it was raised, in words for its owner; and where a forward leaves the path of another."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ...core.batch import Batch

ANOTHER_PATH = "forward takes another path from {place} on, as code does that looks at the shape of a tensor"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def place_of(error: Exception) -> str:
    """File and line of the model's code that raised; where all of it is torch's, what was raised."""
    root = Path(__file__).parents[2]
    libraries = (Path(torch.__file__).parent, root / "spaces", root / "compression")
    frames = traceback.extract_tb(error.__traceback__)
    model = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(folder) for folder in libraries)]
    return (
        f"{Path(model[-1].filename).name}, line {model[-1].lineno}"
        if model
        else f"a layer after it ({first_line(error)})"
    )


class _End(Exception):
    """The call that was waited for."""


class _Calls(TorchFunctionMode):
    """Notes the functions of torch that make tensors, by name, and raises `_End` after as many of them as `last`."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.last, self.names = last, []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):  # others ask for a shape or a type
            if len(self.names) == self.last:
                raise _End
            self.names.append(getattr(func, "__name__", type(func).__name__))
        return made


@dataclass(frozen=True)
class ForwardPath:
    """What a model returned of an input, and the functions of torch that made tensors for it, in order.

    A model without some of its channels computes something else where its path is another one, as where a residual is added only
    `if new.shape == old.shape`.
    """

    outputs: Any
    calls: tuple[str, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, inputs: Batch) -> ForwardPath:
        """The path of a model in eval mode, in which it has kept nothing of earlier calls."""
        _forget(model)
        with _Calls() as calls:
            outputs = model(inputs)
        return cls(outputs, tuple(calls.names))

    @torch.no_grad()
    def why_left(self, other: ForwardPath, model: nn.Module, inputs: Batch) -> str | None:
        """Where `other`, that of the model in its present shape, is another path; None where it is the same."""
        if self.calls == other.calls:
            return None
        pairs = enumerate(zip(self.calls, other.calls, strict=False))
        first = next((number for number, (mine, its) in pairs if mine != its), min(len(self.calls), len(other.calls)))
        _forget(model)
        try:
            with _Calls(first):
                model(inputs)
        except _End as end:
            return ANOTHER_PATH.format(place=place_of(end))
        return ANOTHER_PATH.format(place="its end")


def _forget(model: nn.Module) -> None:
    """Have modules drop what they keep of calls in eval mode, as LeViT's biases of attention, which a further call does without making."""
    model.train()
    model.eval()
