"""Channels that change places by their numbers, for a runtime that folds that wrongly into the next convolution."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from ..graph_nodes import set_nodes


def spell_out_permutations(graph: GraphProto) -> None:
    """Write each Gather that only permutes as one between an Unsqueeze and a Squeeze, in place.

    OpenVINO 2026.4 folds a permutation of channels into the weight of the convolution after it, by the permutation itself where
    its inverse is right. One that is its own inverse, as a flip, is right either way.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    if any(_permutes(node, constants) for node in graph.node):
        set_nodes(graph, (part for node in graph.node for part in _spelt_out(graph, node, constants)))


def _permutes(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a node puts all entries of an axis in another order, by a permutation that is not its own inverse."""
    if node.op_type != "Gather" or (stored := constants.get(node.input[1])) is None:
        return False
    order = numpy_helper.to_array(stored)
    if order.ndim != 1:
        return False
    order = np.where(order < 0, order + len(order), order)
    if sorted(order) != list(range(len(order))):
        return False
    return bool((order[order] != np.arange(len(order))).any())


def _spelt_out(graph: GraphProto, node: NodeProto, constants: Mapping[str, TensorProto]) -> list[NodeProto]:
    if not _permutes(node, constants):
        return [node]
    axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
    (values, order), made = node.input, node.output[0]
    first = f"{made}.first"
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), first))
    return [
        helper.make_node("Unsqueeze", [values, first], [f"{made}.one"], name=f"{made}.Unsqueeze"),
        helper.make_node(
            "Gather", [f"{made}.one", order], [f"{made}.moved"], name=node.name, axis=axis if axis < 0 else axis + 1
        ),
        helper.make_node("Squeeze", [f"{made}.moved", first], [made], name=f"{made}.Squeeze"),
    ]
