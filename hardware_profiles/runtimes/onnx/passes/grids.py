"""Q/DQ pairs for the integer grids of a candidate, in an ONNX graph; weights are stored as int8."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from .....core.errors import LoweringError
from .....spaces.policies.candidate import Quantization, QuantizedWeight, QuantParams
from ..graph_nodes import addition_nodes, nodes_of_layers, set_nodes
from ..onnx_file import WeightsApart


def insert_grids(
    lowered: WeightsApart, quantization: Quantization, bound_float_layers: bool = False, signed_grids: bool = False
) -> None:
    """Put Q/DQ pairs for every grid of `quantization` but those by groups into the graph and its weights, in place; see `lower`.

    Raises:
        LoweringError: a layer or addition with a grid is not in the graph.
    """
    graph = lowered.model.graph
    inserter = _Inserter(lowered)
    per_channel = {name: weight for name, weight in quantization.weights.items() if not weight.group_size}
    runs = nodes_of_layers(graph, quantization.inputs.keys() | per_channel.keys())
    added = addition_nodes(graph, {(path, index) for path, index, _ in quantization.additions})
    operands = [
        (node, 0, grid, bound_float_layers and name not in quantization.weights)
        for name, grid in quantization.inputs.items()
        for node in runs[name]
    ]
    additions = quantization.additions.items()
    operands += [(added[path, index], operand, grid, False) for (path, index, operand), grid in additions]
    for node, operand, grid, bounded in operands:
        inserter.quantize_input(node, operand, _signed(grid) if signed_grids else grid, bounded)
    for name, weight in per_channel.items():
        inserter.quantize_weight(runs[name], weight)
    inserter.finish()


def _signed(grid: QuantParams) -> QuantParams:
    """The same grid on signed integers where its zero is in the middle; itself elsewhere."""
    middle = (grid.high + 1) // 2
    if grid.low or int(grid.zero_point) != middle:
        return grid
    return QuantParams(grid.scale, np.zeros((), np.int8), -middle, grid.high - middle)


class _Inserter:
    """Inserts Q/DQ pairs into a graph; one pair per tensor and grid, shared by all its readers."""

    def __init__(self, lowered: WeightsApart) -> None:
        self.lowered, self.graph = lowered, lowered.model.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.before: dict[int, list[NodeProto]] = {}
        self.pairs: dict[tuple, str] = {}
        self.producer = {output: index for index, node in enumerate(self.graph.node) for output in node.output}
        self.nodes = list(self.graph.node)

    def quantize_input(self, node: NodeProto, operand: int, grid: QuantParams, bounded: bool) -> None:
        """Let `node` read its operand on `grid`, through a Clip where `bounded`."""
        tensor = node.input[operand]
        key = (tensor, float(grid.scale), int(grid.zero_point), grid.low, grid.high, bounded)
        if key not in self.pairs:
            self.pairs[key] = self._add_pair(tensor, grid, bounded, len(self.pairs))
        node.input[operand] = self.pairs[key]

    def _add_pair(self, tensor: str, grid: QuantParams, bounded: bool, number: int) -> str:
        name, limits = f"{tensor}.grid{number}", np.iinfo(grid.zero_point.dtype)
        affine = [self._constant(f"{name}.scale", grid.scale), self._constant(f"{name}.zero_point", grid.zero_point)]
        steps = [("QuantizeLinear", affine), ("DequantizeLinear", affine)]
        if bounded:
            steps.append(("Clip", self._ends(name, grid)))
        elif (grid.low, grid.high) != (limits.min, limits.max):
            # The container saturates at its own ends; a narrower grid has to saturate before it.
            steps.insert(0, ("Clip", self._ends(name, grid)))
        nodes, read = [], tensor
        for operation, constants in steps:
            made = f"{name}.{operation}"
            nodes.append(helper.make_node(operation, [read, *constants], [made], name=made))
            read = made
        self.before.setdefault(self.producer.get(tensor, -1) + 1, []).extend(nodes)
        return read

    def _ends(self, name: str, grid: QuantParams) -> list[str]:
        """The lowest and highest number on `grid`, as constants."""
        return [
            self._constant(f"{name}.{end}", (np.float32(integer) - np.float32(grid.zero_point)) * grid.scale)
            for end, integer in (("low", grid.low), ("high", grid.high))
        ]

    def quantize_weight(self, nodes: list[NodeProto], weight: QuantizedWeight) -> None:
        """Let `nodes`, the runs of one layer, read their weight on its grid."""
        node = nodes[0]
        name = node.input[1]
        # MatMul holds the transpose of a linear layer's weight.
        transposed = node.op_type == "MatMul"
        integers = weight.integers.T if transposed else weight.integers
        check_same(node.name, self.lowered.take(name), integers, weight.grid.scale, axis=int(transposed))
        self.lowered.weights[f"{name}.q"] = integers
        inputs = [
            f"{name}.q",
            self._constant(f"{name}.scale", weight.grid.scale),
            self._constant(f"{name}.zero_point", weight.grid.zero_point),
        ]
        made = f"{name}.dq"
        dequantize = helper.make_node("DequantizeLinear", inputs, [made], name=made, axis=int(transposed))
        self.before.setdefault(0, []).append(dequantize)
        for run in nodes:
            run.input[1] = made
        if weight.bias is not None and len(node.input) > 2:
            if (bias := self.constants.get(node.input[2])) is None:
                raise LoweringError(f"weight {node.input[2]} is not a constant of the exported graph")
            bias.CopyFrom(numpy_helper.from_array(weight.bias.astype(np.float32), bias.name))

    def finish(self) -> None:
        """Write all nodes back in an order where every tensor is made before it is read."""
        ordered: list[NodeProto] = []
        for index, node in enumerate([*self.nodes, None]):
            ordered.extend(self.before.get(index, []))
            if node is not None:
                ordered.append(node)
        set_nodes(self.graph, ordered)

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def check_same(name: str, values: np.ndarray, integers: np.ndarray, scale: np.ndarray, axis: int) -> None:
    """Hold the integers against the exported weight, which differs by half a step at most unless batch-norm was folded
    into one of them only. That scales whole channels, so some weights of each are enough.

    Raises:
        LoweringError: they differ by more, or in shape.
    """
    if integers.shape != values.shape:
        raise LoweringError(f"{name}: weight of shape {list(values.shape)} where {list(integers.shape)} was expected")
    some = tuple(slice(None) if dimension == axis else slice(4) for dimension in range(values.ndim))
    values, integers = values[some], integers[some]
    step = scale.reshape([-1 if dimension == axis else 1 for dimension in range(values.ndim)])
    if (np.abs(values - integers * step) > 0.51 * step).any():
        raise LoweringError(f"{name}: the exported weight is not the one that was quantized")
