"""Embeddings whose tables are stored as integers: rows are looked up as such, and only they become floats.

Two numbers of 4 bits share a byte, the first half of a row with the second. They are taken apart in floats, which all runtimes have
operations for and which hold every byte exactly, bfloat16 too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .....core.errors import LoweringError
from .....spaces.policies.candidate import QuantizedWeight
from ...half_bytes import HALF_BYTE, MIDDLE, in_half_bytes, needs_half_bytes
from ...node_names import module_of_node
from ..graph_nodes import read_by, set_nodes
from ..onnx_file import WeightsApart
from .grids import check_same


def write_embeddings(lowered: WeightsApart, tables: Mapping[str, QuantizedWeight]) -> None:
    """Have the lookups of the embeddings in `tables` read integers, in place.

    Raises:
        LoweringError: an embedding is not looked up in the graph, or its table is read otherwise too.
    """
    steps: dict[str, list[NodeProto]] = {}
    for name, table in tables.items():
        stored = _Stored(lowered, name, table)
        steps |= {node.output[0]: stored.looked_up(node) for node in stored.readers}
    graph = lowered.model.graph
    set_nodes(graph, [step for node in graph.node for step in steps.get(node.output[0], [node])])


class _Stored:
    """A table in a graph, as integers with a scale for each row.

    Attributes:
        readers: the nodes that look rows up in it.
    """

    def __init__(self, lowered: WeightsApart, name: str, table: QuantizedWeight) -> None:
        self._graph, self._columns, self._is_halved = (
            lowered.model.graph,
            table.integers.shape[1],
            needs_half_bytes(table),
        )
        first = next((n for n in self._graph.node if n.op_type == "Gather" and module_of_node(n.name) == name), None)
        if first is None:
            raise LoweringError(f"embedding {name} is not looked up in the exported graph")
        self._name = first.input[0]
        self.readers = [node for node in self._graph.node if self._name in read_by(node)]
        if any(node.op_type != "Gather" for node in self.readers):
            raise LoweringError(f"embedding {name}: something else reads its table too")
        check_same(name, lowered.take(self._name), table.integers, table.grid.scale, axis=0)
        lowered.weights[f"{self._name}.q"] = in_half_bytes(table.integers) if self._is_halved else table.integers
        self._constant("scale", table.grid.scale[:, None].astype(np.float32))

    def looked_up(self, node: NodeProto) -> list[NodeProto]:
        """What computes the output of a lookup from integers."""
        ids, made = node.input[1], node.output[0]
        integers, scale, numbers = (f"{made}.{part}" for part in ("q", "scale", "float"))
        steps = [
            helper.make_node("Gather", [f"{self._name}.q", ids], [integers], node.name),
            helper.make_node("Gather", [f"{self._name}.scale", ids], [scale], f"{node.name}.scale"),
            helper.make_node("Cast", [integers], [numbers], f"{node.name}.float", to=TensorProto.FLOAT),
        ]
        if self._is_halved:
            halves = self._taken_apart(numbers)
            steps, numbers = [*steps, *halves], halves[-1].output[0]
        return [*steps, helper.make_node("Mul", [numbers, scale], [made], f"{node.name}.row")]

    def _taken_apart(self, numbers: str) -> list[NodeProto]:
        """Rows of bytes, as floats, as rows of the integers in them."""
        parts = {part: f"{numbers}.{part}" for part in ("shifted", "high", "above", "low", "both", "all", "whole")}
        size, step, middle = (
            self._constant(part, np.float32(value))
            for part, value in (("size", 2**HALF_BYTE), ("step", 2**-HALF_BYTE), ("middle", MIDDLE))
        )
        wanted = [
            ("Mul", [numbers, step], "shifted", {}),
            ("Floor", [parts["shifted"]], "high", {}),
            ("Mul", [parts["high"], size], "above", {}),
            ("Sub", [numbers, parts["above"]], "low", {}),
            ("Concat", [parts["low"], parts["high"]], "both", {"axis": -1}),
            ("Sub", [parts["both"], middle], "all", {}),
        ]
        if self._columns % 2:
            ends = [
                self._constant(part, np.array([value]))
                for part, value in (("from", 0), ("to", self._columns), ("axis", -1))
            ]
            wanted.append(("Slice", [parts["all"], *ends], "whole", {}))
        return [helper.make_node(kind, read, [parts[made]], parts[made], **more) for kind, read, made, more in wanted]

    def _constant(self, part: str, value: np.ndarray | np.float32) -> str:
        name = f"{self._name}.{part}"
        if all(known.name != name for known in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name
