"""Reductions that keep their axes, for a runtime that computes others wrongly on integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from ..graph_nodes import set_nodes

REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")

OF_IMAGES = ((2, 3), (2, 3, 4), (-1,), (-2, -1), (-1, -2), (-3, -2, -1))
"""Axes after those of the channels of images and volumes: such reductions are right, and take the next layer's grid into their kernel."""


def keep_reduced_axes(graph: GraphProto) -> None:
    """Write each reduction that drops its axes as one that keeps them and a Squeeze, in place.

    OpenVINO 2026.4 fuses the scales per channel of a quantized linear layer into a reduction over its rows, and takes another axis of
    what that returns for the channels.
    """
    ordered: list[NodeProto] = []
    for node in graph.node:
        ordered += _with_axes(graph, node) if node.op_type in REDUCTIONS else [node]
    set_nodes(graph, ordered)


def _with_axes(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    read = _axes(graph, node, attributes)
    if attributes.get("keepdims", 1) or read is None or tuple(read) in OF_IMAGES:
        return [node]
    made = node.output[0]
    kept = f"{made}.kept"
    graph.initializer.append(numpy_helper.from_array(np.array(read, np.int64), f"{kept}.axes"))
    next(each for each in node.attribute if each.name == "keepdims").i = 1
    node.output[0] = kept
    return [node, helper.make_node("Squeeze", [kept, f"{kept}.axes"], [made], name=f"{made}.Squeeze")]


def _axes(graph: GraphProto, node: NodeProto, attributes: Mapping[str, Any]) -> Sequence[int] | None:
    """The axes that a reduction goes over: an attribute, or the second input of some; None where they are not known, or all."""
    if "axes" in attributes or len(node.input) < 2:
        return attributes.get("axes")
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {each.output[0]: each.attribute[0].t for each in graph.node if each.op_type == "Constant"}
    return numpy_helper.to_array(stored[node.input[1]]).tolist() if node.input[1] in stored else None
