"""A float ONNX graph in which everything that depends on shapes alone is computed, for converters without such operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from ....core.batch import Batch
from ....core.errors import LoweringError
from .float_graph import export_float
from .graph_nodes import set_nodes


@dataclass(frozen=True)
class StaticGraph:
    """The computation that depends on the input.

    Attributes:
        graph: its nodes, in the order they run.
        constants: every tensor that is known before.
        shapes: of every other tensor.
    """

    graph: GraphProto
    constants: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]


def export_static(model: nn.Module, example_input: Batch) -> StaticGraph:
    """The float32 graph of `model` for inputs of exactly this shape; GELU is one operation in it.

    Raises:
        LoweringError: the exporter cannot take the model, or a shape in it depends on the input's values.
    """
    exported = export_float(model, example_input)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in exported.graph.initializer}
    for tensor in exported.graph.initializer:
        if constants[tensor.name].dtype == np.float32:
            tensor.ClearField("raw_data")  # no shape depends on it, and it would be copied for each look at the shapes
    shapes = _shapes(exported)
    while _fold(exported.graph, constants, shapes):
        shapes = _shapes(exported)
    _unite_gelu(exported.graph, constants)
    for node in exported.graph.node:
        if unknown := [name for name in node.output if name not in shapes]:
            raise LoweringError(f"{node.name or node.op_type}: the shape of {unknown[0]} depends on the input")
    return StaticGraph(exported.graph, constants, shapes)


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose every dimension is known."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dimensions = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in dimensions):
            found[value.name] = tuple(axis.dim_value for axis in dimensions)
    return found


def _fold(graph: GraphProto, constants: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Compute the nodes whose operands are known, in place; whether there were any that the shapes may depend on."""
    left, folded = [], False
    for node in graph.node:
        values = _computed(node, constants, shapes)
        if values is None:
            left.append(node)
            continue
        for name, value in zip(node.output, values, strict=True):
            constants[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
        folded |= node.op_type not in ("Constant", "Identity")
    set_nodes(graph, left)
    return folded


def _computed(
    node: NodeProto, constants: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> list[np.ndarray] | None:
    if node.op_type == "Shape" and node.input[0] in shapes:
        return [np.array(shapes[node.input[0]], np.int64)]
    given = {name: constants.get(name) for name in node.input if name}
    if any(value is None for value in given.values()):
        return None
    return [np.asarray(value) for value in ReferenceEvaluator(node).run(None, given)]


def _unite_gelu(graph: GraphProto, constants: dict[str, np.ndarray]) -> None:
    """Write every x (1 + erf(x / sqrt 2)) / 2 as one "Gelu", in place (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {node.output[0]: node for node in graph.node}
    for error_function in [node for node in graph.node if node.op_type == "Erf"]:
        chain = list(_gelu_chain(makers.get(error_function.input[0], error_function), readers))
        if not _is_gelu(chain, constants):
            raise LoweringError(f"{error_function.name}: an error function that is not of a GELU has no counterpart")
        last, source = chain[-1], chain[0].input[0]
        last.CopyFrom(helper.make_node("Gelu", [source], [last.output[0]], name=last.name))
        for node in chain[:-1]:
            graph.node.remove(node)


def _is_gelu(chain: Sequence[NodeProto], constants: Mapping[str, np.ndarray]) -> bool:
    numbers = [constants[name] for node in chain for name in node.input if name in constants]
    has_operations = [node.op_type for node in chain] == ["Div", "Erf", "Add", "Mul", "Mul"] and len(numbers) == 3
    return has_operations and all(map(np.allclose, numbers, (2**0.5, 1, 0.5)))


def _gelu_chain(first: NodeProto, readers: dict[str, list[NodeProto]]) -> Iterator[NodeProto]:
    """`first` and the four nodes after it, as far as each is read by one node only."""
    node = first
    for _ in range(5):
        yield node
        following = readers.get(node.output[0], [])
        if len(following) != 1:
            return
        node = following[0]
