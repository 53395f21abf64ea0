"""ONNX operations other than layers in TensorFlow Lite: one function each, in float32 unless the operation keeps grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from ....core.errors import LoweringError
from .graph import LiteGraph, Value, affine_of, channels_last, natural
from .layers import Window, as_image, is_relu6

Converter = Callable[[LiteGraph, NodeProto], None]
CONVERTERS: dict[str, Converter] = {}
"""ONNX operation -> the function that writes it."""


def converts(*kinds: str) -> Callable[[Converter], Converter]:
    """Register the function for these operations."""

    def register(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def _attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _kept(graph: LiteGraph, node: NodeProto) -> Value:
    """The operand of an operation that keeps grids: in integers where everything after it reads integers."""
    grid = graph.grid_after(node.output[0])
    return graph.get_on(node.input[0], grid) if grid else graph.get_as_it_is(node.input[0])


def _put(graph: LiteGraph, node: NodeProto, kind: str, inputs: list, like: Value, **options: object) -> Value:
    """Write an operation whose result has the axes of `like`; its shape may differ."""
    name = node.output[0]
    shape = [graph.shape_of(name)[axis] for axis in like.order]
    made = graph.emit(kind, inputs, name, shape, like.order, like.grid, like.dtype, **options)
    graph.put(name, made)
    return made


UNARY = {
    "Relu": "RELU", "Sigmoid": "LOGISTIC", "Tanh": "TANH", "HardSwish": "HARD_SWISH", "Gelu": "GELU", "Sqrt": "SQRT",
    "Exp": "EXP", "Log": "LOG", "Neg": "NEG", "Abs": "ABS", "Elu": "ELU", "Sin": "SIN", "Cos": "COS",
}  # fmt: skip


@converts(*UNARY)
def _unary(graph: LiteGraph, node: NodeProto) -> None:
    value = _kept(graph, node) if node.op_type == "Relu" else graph.get(node.input[0])
    _put(graph, node, UNARY[node.op_type], [value], value)


@converts("LeakyRelu")
def _leaky_relu(graph: LiteGraph, node: NodeProto) -> None:
    value = graph.get(node.input[0])
    _put(graph, node, "LEAKY_RELU", [value], value, alpha=_attribute(node, "alpha", 0.01))


@converts("Clip")
def _clip(graph: LiteGraph, node: NodeProto) -> None:
    if is_relu6(graph, node):
        value = _kept(graph, node)
        _put(graph, node, "RELU6", [value], value)
        return
    value = graph.get(node.input[0])
    for kind, end in zip(("MAXIMUM", "MINIMUM"), node.input[1:], strict=False):
        if end:
            value = _put(
                graph, node, kind, [value, graph.constant(end, graph.constant_of(end).astype(np.float32))], value
            )
    graph.put(node.output[0], value)


@converts("HardSigmoid")
def _hard_sigmoid(graph: LiteGraph, node: NodeProto) -> None:
    value, numbers = graph.get(node.input[0]), (_attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5), 0.0, 1.0)
    for kind, number in zip(("MUL", "ADD", "MAXIMUM", "MINIMUM"), numbers, strict=True):
        value = _put(graph, node, kind, [value, graph.constant("number", np.array(number, np.float32))], value)


BINARY = {"Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Pow": "POW", "Max": "MAXIMUM", "Min": "MINIMUM"}


@converts(*BINARY)
def _binary(graph: LiteGraph, node: NodeProto) -> None:
    given = graph.together(node.input, [graph.get(name) for name in node.input])
    _put(graph, node, BINARY[node.op_type], list(given), max(given, key=lambda value: len(value.order)))


@converts("Identity", "Dropout")
def _passed_on(graph: LiteGraph, node: NodeProto) -> None:
    graph.put(node.output[0], _kept(graph, node))


@converts("Cast")
def _cast(graph: LiteGraph, node: NodeProto) -> None:
    """What is computed is in floats already; inputs of another type are converted, to floats only."""
    value = _kept(graph, node)
    if value.dtype == "float32":
        graph.put(node.output[0], value)
        return
    if _attribute(node, "to") != TensorProto.FLOAT:
        raise LoweringError(f"{node.name}: LiteRT lowering converts inputs to float32 only")
    graph.put(node.output[0], graph.emit("CAST", [value], node.output[0], value.shape, value.order))


@converts("Transpose")
def _transpose(graph: LiteGraph, node: NodeProto) -> None:
    """The same tensor with its axes renumbered; no data moves."""
    value = _kept(graph, node)
    moves = list(_attribute(node, "perm", range(len(value.order))[::-1]))
    order = tuple(moves.index(axis) for axis in value.order)
    graph.put(node.output[0], Value(value.tensor, value.shape, order, value.grid, value.dtype))


@converts("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshape(graph: LiteGraph, node: NodeProto) -> None:
    value = _kept(graph, node)
    value = graph.ordered(value, natural(len(value.order)))
    shape = graph.shape_of(node.output[0])
    like = Value(value.tensor, shape, natural(len(shape)), value.grid, value.dtype)
    _put(graph, node, "RESHAPE", [value, graph.indices("shape", *shape)], like)


@converts("Expand")
def _expand(graph: LiteGraph, node: NodeProto) -> None:
    value = graph.get(node.input[0])
    shape = graph.shape_of(node.output[0])
    like = Value(value.tensor, shape, natural(len(shape)))
    given = graph.ordered(value, natural(len(value.order)))
    _put(graph, node, "BROADCAST_TO", [given, graph.indices("shape", *shape)], like)


REDUCTIONS = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "GlobalAveragePool": "MEAN"}


@converts(*REDUCTIONS)
def _reduce(graph: LiteGraph, node: NodeProto) -> None:
    value = graph.get(node.input[0])
    rank = len(value.order)
    axes = range(2, rank) if node.op_type == "GlobalAveragePool" else _axes(graph, node, rank)
    keeps = bool(_attribute(node, "keepdims", 1))
    places = graph.indices("axes", *sorted(value.axis(axis) for axis in axes))
    if keeps:
        _put(graph, node, REDUCTIONS[node.op_type], [value, places], value, keepDims=True)
        return
    left = [axis for axis in value.order if axis not in {axis % rank for axis in axes}]
    like = Value(value.tensor, (), tuple(sorted(left).index(axis) for axis in left))
    _put(graph, node, REDUCTIONS[node.op_type], [value, places], like, keepDims=False)


def _axes(graph: LiteGraph, node: NodeProto, rank: int) -> list[int]:
    if len(node.input) > 1 and node.input[1]:
        return graph.constant_of(node.input[1]).tolist()
    return list(_attribute(node, "axes") or range(rank))


@converts("MaxPool", "AveragePool")
def _pool(graph: LiteGraph, node: NodeProto) -> None:
    largest = node.op_type == "MaxPool"
    value = _kept(graph, node) if largest else graph.get(node.input[0])
    rank = len(value.order)
    image = as_image(graph, graph.ordered(value, channels_last(rank)), node.input[0])
    shape = [graph.shape_of(node.output[0])[axis] for axis in channels_last(rank)]
    stored = shape if rank == 4 else [shape[0], 1, *shape[1:]]
    window = Window(node, rank, image.shape[1:3])
    image, padding = _padded_for_pooling(graph, node, image, window, stored)
    options = dict(
        zip(("filterHeight", "filterWidth", "strideH", "strideW"), window.kernel + window.strides, strict=True)
    )
    kind = "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D"
    made = graph.emit(kind, [image], node.output[0], stored, None, image.grid, padding=padding, **options)
    if rank == 3:
        made = graph.emit("RESHAPE", [made, graph.indices("shape", *shape)], node.output[0], shape, None, image.grid)
    graph.put(node.output[0], Value(made.tensor, tuple(shape), channels_last(rank), image.grid))


def _padded_for_pooling(
    graph: LiteGraph, node: NodeProto, image: Value, window: Window, made: list[int]
) -> tuple[Value, int]:
    """The image with a pooling's padding: of the lowest number for a maximum, of zeros for a mean that counts padding."""
    average, rounded_up = node.op_type == "AveragePool", bool(_attribute(node, "ceil_mode", 0))
    if window.dilations != [1, 1] or (average and _averages_partial_windows(node, window)):
        raise LoweringError(
            f"{node.name}: LiteRT lowering has no pooling with dilation, nor a mean over part of its window"
        )
    if rounded_up:
        for axis, (before, after) in enumerate(window.pads):
            needed = (made[1 + axis] - 1) * window.strides[axis] + window.reach(axis) - image.shape[1 + axis] - before
            window.pads[axis] = (before, max(after, needed))
    if average:
        return window.padded(graph, image, spelt_out=True)
    lowest = np.float32(np.finfo(np.float32).min) if image.grid is None else np.int8(-128)
    affine = affine_of(image.grid) if image.grid else None
    return window.padded(graph, image, "PADV2", graph.flat.constant("lowest", np.asarray(lowest), affine))


def _averages_partial_windows(node: NodeProto, window: Window) -> bool:
    """Whether a mean leaves out padding, or windows reach past the image."""
    counts_padding = bool(_attribute(node, "count_include_pad", 0))
    return bool(_attribute(node, "ceil_mode", 0)) or (any(map(any, window.pads)) and not counts_padding)


@converts("BatchNormalization")
def _batch_norm(graph: LiteGraph, node: NodeProto) -> None:
    gamma, beta, mean, variance = (graph.constant_of(name) for name in node.input[1:])
    scale = gamma / np.sqrt(variance + _attribute(node, "epsilon", 1e-5))
    value = graph.get(node.input[0])
    for kind, factor in (("MUL", scale), ("ADD", beta - mean * scale)):
        shape = [-1 if axis == 1 else 1 for axis in value.order]
        value = _put(
            graph, node, kind, [value, graph.constant("norm", factor.astype(np.float32).reshape(shape))], value
        )


@converts("LayerNormalization")
def _layer_norm(graph: LiteGraph, node: NodeProto) -> None:
    """(x - mean) / sqrt(variance + epsilon) x scale + bias over the last axis (Ba et al. 2016, arXiv:1607.06450)."""
    value = graph.get(node.input[0])
    value = graph.ordered(value, natural(len(value.order)))
    if _attribute(node, "axis", -1) % len(value.order) != len(value.order) - 1:
        raise LoweringError(f"{node.name}: LiteRT lowering has layer norms of the last axis only")
    last, narrow = graph.indices("axis", len(value.order) - 1), (*value.shape[:-1], 1)
    mean = graph.emit("MEAN", [value, last], "mean", narrow, keepDims=True)
    centred = graph.emit("SUB", [value, mean], "centred", value.shape)
    square = graph.emit("MUL", [centred, centred], "square", value.shape)
    variance = graph.emit("MEAN", [square, last], "variance", narrow, keepDims=True)
    epsilon = graph.constant("epsilon", np.array(_attribute(node, "epsilon", 1e-5), np.float32))
    factor = graph.emit("RSQRT", [graph.emit("ADD", [variance, epsilon], "shifted", narrow)], "factor", narrow)
    value = graph.emit("MUL", [centred, factor], node.output[0], value.shape)
    for kind, name in zip(("MUL", "ADD"), node.input[1:], strict=False):
        value = graph.emit(kind, [value, graph.get(name)], node.output[0], value.shape)
    graph.put(node.output[0], value)


@converts("Softmax")
def _softmax(graph: LiteGraph, node: NodeProto) -> None:
    value = graph.get(node.input[0])
    axis = _attribute(node, "axis", -1) % len(value.order)
    value = graph.ordered(value, (*(a for a in natural(len(value.order)) if a != axis), axis))
    _put(graph, node, "SOFTMAX", [value], value, beta=1.0)


@converts("MatMul")
def _matmul(graph: LiteGraph, node: NodeProto) -> None:
    """Of two computed tensors."""
    values = [graph.get(name) for name in node.input]
    given = [graph.ordered(value, natural(len(value.order))) for value in values]
    shape = graph.shape_of(node.output[0])
    _put(graph, node, "BATCH_MATMUL", given, Value(given[0].tensor, shape, natural(len(shape))))


@converts("Concat")
def _concat(graph: LiteGraph, node: NodeProto) -> None:
    given = graph.together(node.input, [graph.get(name) for name in node.input])
    axis = given[0].axis(_attribute(node, "axis"))
    _put(graph, node, "CONCATENATION", list(given), given[0], axis=axis)


@converts("Slice")
def _slice(graph: LiteGraph, node: NodeProto) -> None:
    value = graph.get(node.input[0])
    rank = len(value.order)
    starts, ends, *rest = (graph.constant_of(name).tolist() for name in node.input[1:])
    axes, steps = (*rest, [])[:2] if rest else (list(range(len(starts))), [])
    first, last, strides = [0] * rank, list(value.shape), [1] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        place = value.axis(axis)
        first[place], last[place], _ = slice(start, end, step).indices(value.shape[place])
        strides[place] = step
        if step < 1:
            raise LoweringError(f"{node.name}: LiteRT lowering slices forwards only")
    settings = [
        graph.indices(name, *numbers)
        for name, numbers in zip(("begin", "end", "strides"), (first, last, strides), strict=True)
    ]
    _put(graph, node, "STRIDED_SLICE", [value, *settings], value)


@converts("Split")
def _split(graph: LiteGraph, node: NodeProto) -> None:
    value = graph.get(node.input[0])
    place = value.axis(_attribute(node, "axis", 0))
    shapes = [[graph.shape_of(name)[axis] for axis in value.order] for name in node.output]
    tensors = [graph.flat.tensor(name, shape, "float32") for name, shape in zip(node.output, shapes, strict=True)]
    sizes = graph.indices("sizes", *(shape[place] for shape in shapes))
    inputs = [value.tensor, sizes, graph.flat.constant("axis", np.array(place, np.int32))]
    graph.flat.operation("SPLIT_V", inputs, tensors, numSplits=len(tensors))
    for name, shape, tensor in zip(node.output, shapes, tensors, strict=True):
        graph.put(name, Value(tensor, tuple(shape), value.order))


@converts("Gather")
def _gather(graph: LiteGraph, node: NodeProto) -> None:
    value = graph.get(node.input[0])
    value = graph.ordered(value, natural(len(value.order)))
    axis = _attribute(node, "axis", 0) % len(value.order)
    shape = graph.shape_of(node.output[0])
    like = Value(value.tensor, shape, natural(len(shape)))
    if node.input[1] in graph.inputs:  # an embedding, whose numbers are not negative
        places = graph.get_as_it_is(node.input[1]).tensor
    else:
        numbers = graph.constant_of(node.input[1])
        numbers = np.where(numbers < 0, numbers + value.shape[axis], numbers).astype(np.int32)
        places = graph.flat.constant("places", numbers)
    _put(graph, node, "GATHER", [value, places], like, axis=axis)
