"""What the TorchScript exporter does not know by itself: RMSNorm, differences of neighbours, sums of truths, axes from behind, transposed
matrices, channel shuffles, traced flags, and heads of queries that share keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.onnx import symbolic_helper
from torch.onnx._internal.torchscript_exporter._type_utils import JitScalarType
from torch.onnx._internal.torchscript_exporter.utils import register_custom_op_symbolic

from ....workloads.workload import describe

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


@symbolic_helper.parse_args("v", "i", "i", "v", "v")
def _difference(graph: Any, values: Any, times: int, dim: int, before: Any, after: Any) -> Any:
    """Differences of neighbours along a dimension, which decoders find the beginnings of sequences by."""
    ends = [end for end in (before, values, after) if not symbolic_helper._is_none(end)]
    for _ in range(times):
        whole = graph.op("Concat", *ends, axis_i=dim) if len(ends) > 1 else ends[0]
        later, earlier = (_part(graph, whole, dim, *part) for part in ((1, 2**62), (0, -1)))
        ends = [graph.op("Sub", later, earlier)]
    return ends[0]


def _part(graph: Any, values: Any, dim: int, start: int, end: int) -> Any:
    start, end, axis = (graph.op("Constant", value_t=torch.tensor([number])) for number in (start, end, dim))
    return graph.op("Slice", values, start, end, axis)


register_custom_op_symbolic("aten::rms_norm", _rms_norm, OPSET)
register_custom_op_symbolic("aten::diff", _difference, OPSET)


@symbolic_helper.parse_args("v", "i", "i")
def _running_sums(graph: Any, values: Any, dim: int, kind: int | None) -> Any:
    """Running sums, of truths too, which decoders number sequences by: torch counts in int64, and ONNX sums no booleans."""
    if kind is not None:
        values = graph.op("Cast", values, to_i=JitScalarType(kind).onnx_type())
    elif not symbolic_helper._is_fp(values):
        values = graph.op("Cast", values, to_i=JitScalarType.INT64.onnx_type())
    return graph.op("CumSum", values, graph.op("Constant", value_t=torch.tensor(dim)))


register_custom_op_symbolic("aten::cumsum", _running_sums, OPSET)


@symbolic_helper.parse_args("v", "t", "t")
def _movedim(graph: Any, tensor: Any, source: Tensor, destination: Tensor) -> Any:
    """A transposition with axes from 0 on: PyTorch's own keeps negative ones, which ONNX has not, and infers other shapes from them."""
    rank = symbolic_helper._get_tensor_rank(tensor)
    assert rank is not None, "the exporter knows no rank"
    moved = dict(
        zip(*((axis % rank for axis in axes.view(-1).tolist()) for axes in (destination, source)), strict=True)
    )
    others = iter(axis for axis in range(rank) if axis not in moved.values())
    return graph.op(
        "Transpose", tensor, perm_i=[moved[axis] if axis in moved else next(others) for axis in range(rank)]
    )


register_custom_op_symbolic("aten::movedim", _movedim, OPSET)


def _transposed_matrices(graph: Any, tensor: Any) -> Any:
    """`tensor.mT`: the last two axes change places."""
    rank = symbolic_helper._get_tensor_rank(tensor)
    assert rank is not None, "the exporter knows no rank"
    return graph.op("Transpose", tensor, perm_i=[*range(rank - 2), rank - 1, rank - 2])


register_custom_op_symbolic("aten::mT", _transposed_matrices, OPSET)


@symbolic_helper.parse_args("v", "i")
def _channel_shuffle(graph: Any, values: Any, groups: int) -> Any:
    """Channels by place in their group, then by group (Zhang et al. 2018, arXiv:1707.01083, section 3.1)."""
    channels = symbolic_helper._get_tensor_dim_size(values, 1)
    assert channels is not None, "the exporter knows no number of channels"
    shape = graph.op("Constant", value_t=torch.tensor([0, groups, channels // groups, -1]))
    mixed = graph.op("Transpose", graph.op("Reshape", values, shape), perm_i=[0, 2, 1, 3])
    return graph.op("Reshape", mixed, graph.op("Shape", values))


register_custom_op_symbolic("aten::channel_shuffle", _channel_shuffle, OPSET)


@contextmanager
def attention_with_plain_flags() -> Iterator[None]:
    """Have attention take flags that tracing has made tensors of, such as `is_causal=length > 1`, and repeat keys and values that several
    heads share, which the exporter cannot."""
    original = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        if isinstance(options.get("is_causal"), Tensor):
            options["is_causal"] = bool(options["is_causal"])
        if options.pop("enable_gqa", False):
            heads = int(query.shape[-3])
            key, value = (each.repeat_interleave(heads // int(each.shape[-3]), -3) for each in (key, value))
        return original(query, key, value, *args, **options)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextmanager
def without_printed_graphs() -> Iterator[None]:
    """Keep the exporter from printing the graph of a model that it does not take: torch 2.14 turns its log on, and never off."""
    original = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = original


def why_not_exported(error: Exception) -> str:
    """What the exporter says of a model, without the graph that it quotes."""
    return describe(error).partition(" [Caused by")[0].partition(" Please feel free")[0]
