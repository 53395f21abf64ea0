"""The operations a model runs on one sample: how much each computes, and how many numbers it reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ...core.batch import Batch
from .layers import Layer

OTHERS = "other operations"

FOLDED = ("aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::cudnn_batch_norm", "aten::_unsafe_view")
"""Beginnings of the names of operations that a runtime folds into others, though they are neither element-wise nor a view."""


@dataclass(frozen=True)
class Operation:
    """A layer, or all operations that are not a layer's, for one sample.

    Attributes:
        name: dotted module path, or `OTHERS`.
        kind: "conv2d" (dense convolutions of any dimension), "depthwise" or "linear", as which a recurrent layer counts.
        macs: multiply-adds, as fvcore counts them.
        weights: elements of the weight.
        activations: elements of inputs and outputs.
        count: how many operations these are.
    """

    name: str
    kind: str
    macs: int
    weights: int
    activations: int
    count: int = 1


def operations_of(model: nn.Module, example_input: Batch, layers: Sequence[Layer]) -> list[Operation]:
    """Layers in module order, then everything else as one; what a runtime fuses into the operation before it costs nothing.

    Element-wise operations, views and batch-norms are such; the model ends in eval mode.
    """
    # Of an embedding's table only the rows that are looked up move.
    layers = [layer for layer in layers if not layer.is_embedding]
    others = _Others()
    moved = _run(model.eval(), [layer.name for layer in layers], example_input, others)
    found = [Operation(each.name, _kind(each), each.macs, each.weights, *moved[each.name]) for each in layers]
    rest = Operation(OTHERS, "linear", others.macs, 0, others.elements, others.count)
    return [*found, rest] if rest.count else found


def _kind(layer: Layer) -> str:
    if layer.kind == "linear" or layer.is_recurrent:
        return "linear"
    return "depthwise" if layer.groups > 1 and layer.groups == layer.shape[0] else "conv2d"


@torch.no_grad()
def _run(model: nn.Module, names: list[str], example_input: Batch, others: _Others) -> dict[str, tuple[int, int]]:
    """Layer -> elements it moves and how often it runs; `others` notes what runs outside them."""
    moved: dict[str, tuple[int, int]] = dict.fromkeys(names, (0, 0))

    def begin(*_: object) -> None:
        others.in_layer = True

    def end(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        others.in_layer = False
        elements, runs = moved[name]
        moved[name] = elements + _elements((inputs, output)), runs + 1

    with ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(name)
            for hook in (
                module.register_forward_pre_hook(begin),
                module.register_forward_hook(partial(end, name)),
            ):
                hooks.callback(hook.remove)
        with _spelt_out_attention(), others:
            model(example_input)
    return moved


@contextmanager
def _spelt_out_attention() -> Iterator[None]:
    """PyTorch's attention as the operations that it consists of, as an exported graph has it."""
    fast, math = torch.backends.mha.get_fastpath_enabled(), torch.nn.attention.SDPBackend.MATH
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(math):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Others(TorchDispatchMode):
    """Notes the operations that are neither a layer's nor fused: how many, their multiply-adds, and the elements they move."""

    def __init__(self) -> None:
        super().__init__()
        self.in_layer = False
        self.count = self.macs = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        fused = torch.Tag.pointwise in func.tags or func.is_view or func.name().startswith(FOLDED)
        if not self.in_layer and not fused and (read := _elements(args)):
            self.count += 1
            self.elements += read + _elements(output)
            if (flops := flop_registry.get(func.overloadpacket)) is not None:
                self.macs += flops(*args, **(kwargs or {}), out_val=output) // 2
        return output


def _elements(values: Any) -> int:
    if isinstance(values, Tensor):
        return values.numel()
    return sum(map(_elements, values)) if isinstance(values, list | tuple) else 0
