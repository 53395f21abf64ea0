"""Dynamically quantized linear layers, written as ONNX's integer operations.

DynamicQuantizeLinear finds the uint8 grid that spans a tensor and zero, MatMulInteger multiplies, and the product is scaled
back: the form that ONNX Runtime fuses into one integer kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from ..graph_nodes import set_nodes
from ..onnx_file import WeightsApart
from .fuse_parallel_linears import drop_unread_weights


def write_integer_products(lowered: WeightsApart, layers: Iterable[NodeProto]) -> None:
    """Replace `layers`, Gemm or MatMul nodes whose weight is dequantized per channel, in place.

    Layers that read the same tensor share its grid.
    """
    graph = lowered.model.graph
    products = _Products(graph, lowered.weights)
    names = {node.name for node in layers}
    ordered: list[NodeProto] = []
    for node in graph.node:
        ordered += products.of(node) if node.name in names else [node]
    set_nodes(graph, ordered)
    drop_unread_weights(lowered)


class _Products:
    def __init__(self, graph: GraphProto, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.producers = {output: node for node in graph.node for output in node.output}
        self.ranged: set[str] = set()

    def of(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that replace a linear layer."""
        tensor, made = node.input[0], node.output[0]
        grid = [f"{tensor}.{part}" for part in ("integers", "step", "origin")]
        nodes = [] if tensor in self.ranged else [_node("DynamicQuantizeLinear", [tensor], grid)]
        self.ranged.add(tensor)
        weight, step = self._weight(node)
        has_bias = len(node.input) > 2
        scaled = f"{made}.scaled" if has_bias else made
        nodes += [
            helper.make_node("MatMulInteger", [grid[0], weight, grid[2]], [f"{made}.product"], name=node.name),
            _node("Cast", [f"{made}.product"], [f"{made}.float"], to=TensorProto.FLOAT),
            _node("Mul", [grid[1], step], [f"{made}.step"]),
            _node("Mul", [f"{made}.float", f"{made}.step"], [scaled]),
        ]
        return [*nodes, _node("Add", [scaled, node.input[2]], [made])] if has_bias else nodes

    def _weight(self, node: NodeProto) -> tuple[str, str]:
        """Names of a layer's integers [in, out] and of their scales [out]."""
        integers, step, _ = self.producers[node.input[1]].input
        if node.op_type == "MatMul":
            return integers, step
        turned = f"{integers}.turned"  # a Gemm of the exporter's holds them as [out, in]
        self.weights.setdefault(turned, self.weights[integers].T)
        return turned, step


def _node(operation: str, inputs: list[str], outputs: list[str], **attributes: Any) -> NodeProto:
    return helper.make_node(operation, inputs, outputs, name=f"{outputs[0]}.{operation}", **attributes)
