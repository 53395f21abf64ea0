"""Tables that a layer multiplies by too, as a language model's output does by that of its input: stored once."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, helper

from ..onnx_file import WeightsApart

FEWEST = 1024
"""The fewest numbers of a table that is worth another node."""


def share_tables(lowered: WeightsApart) -> None:
    """Have layers whose weight is a table that rows are looked up in read the table, in place.

    What is compared is what would be stored: numbers that training or other bits have made different stay apart.
    """
    graph, weights = lowered.model.graph, lowered.weights
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"} & weights.keys()
    for name, other in [(name, other) for name in sorted(tables) for other in weights.keys() - tables]:
        if other in weights and weights[name].size >= FEWEST and _is(weights[name].T, weights[other]):
            del weights[other]
            _transpose(graph, name, other)


def _transpose(graph: GraphProto, name: str, other: str) -> None:
    """Have the table `name` stand for its transpose `other`, which runtimes compute when they load the file; of integers that are
    dequantized, their floats are transposed, or OpenVINO 2026.4 would multiply floats."""
    readers = [node for node in graph.node if other in node.input]
    place, made, read = 0, other, name
    if [reader.op_type for reader in readers] == ["DequantizeLinear"]:
        (reader,) = readers
        made, read = reader.output[0], f"{reader.output[0]}.table"
        reader.input[0], reader.output[0] = name, read
        reader.CopyFrom(helper.make_node("DequantizeLinear", reader.input, reader.output, reader.name, axis=0))
        place = 1 + next(place for place, node in enumerate(graph.node) if read in node.output)
    graph.node.insert(place, helper.make_node("Transpose", [read], [made], f"{made}.transposed", perm=[1, 0]))


def _is(values: np.ndarray, others: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers of the same type; the first row tells most pairs apart."""
    if values.shape != others.shape or values.dtype != others.dtype:
        return False
    return np.array_equal(values[:1], others[:1]) and np.array_equal(values, others)
