"""What the TorchScript exporter does not know by itself: RMSNorm, and attention whose flags are traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.onnx import symbolic_helper
from torch.onnx._internal.torchscript_exporter.utils import register_custom_op_symbolic

OPSET = 17
"""The version of ONNX operators that graphs are exported with."""


@symbolic_helper.parse_args("v", "is", "v", "f")
def _rms_norm(graph: Any, values: Any, shape: Sequence[int], weight: Any, epsilon: float | None) -> Any:
    """Values over the root of their mean square (Zhang and Sennrich 2019, arXiv:1910.07467), which opset 17 has no operator for."""
    if epsilon is None:
        epsilon = torch.finfo(torch.float32).eps
    squares = graph.op("Mul", values, values)
    mean = graph.op("ReduceMean", squares, axes_i=[*range(-len(shape), 0)])
    root = graph.op("Sqrt", graph.op("Add", mean, graph.op("Constant", value_t=torch.tensor(epsilon))))
    normed = graph.op("Div", values, root)
    return normed if symbolic_helper._is_none(weight) else graph.op("Mul", normed, weight)


register_custom_op_symbolic("aten::rms_norm", _rms_norm, OPSET)


@contextmanager
def attention_with_plain_flags() -> Iterator[None]:
    """Have attention take flags that tracing has made tensors of, such as `is_causal=length > 1`."""
    original = functional.scaled_dot_product_attention

    def attention(*args: Any, **options: Any) -> Tensor:
        if isinstance(options.get("is_causal"), Tensor):
            options["is_causal"] = bool(options["is_causal"])
        return original(*args, **options)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextmanager
def norms_spelt_out(model: nn.Module, example_input: Any, layers: Set[str]) -> Iterator[None]:
    """Have batch-norms that read the output of one of `layers` compute by a product and a sum for a while, which the exporter does not
    fold: into a layer that runs more than once it would fold what follows each run."""
    norms = _norms_after(model, example_input, layers)
    for norm in norms:
        vars(norm)["forward"] = _scale_and_shift_of(norm)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


@torch.no_grad()
def _norms_after(model: nn.Module, example_input: Any, layers: Set[str]) -> list[_BatchNorm]:
    """Batch-norms that read what a layer has made, in module order."""
    made: list[Tensor] = []  # kept: the address of a freed tensor is soon that of another
    found: dict[_BatchNorm, None] = {}

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        made.append(output)

    def note(norm: Any, inputs: tuple[Any, ...]) -> None:
        if any(inputs[0] is tensor for tensor in made):
            found[norm] = None

    hooks = [model.get_submodule(name).register_forward_hook(keep) for name in layers]
    hooks += [
        m.register_forward_pre_hook(note)
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats
    ]
    try:
        model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return [*found]


@torch.no_grad()
def _scale_and_shift_of(norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    """What a batch-norm computes in evaluation mode, of constants."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale

    def forward(values: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (values.ndim - 2))
        return values * scale.view(shape) + shift.view(shape)

    return forward
