"""Embeddings in an exported graph whose tables are stored as integers: rows are looked up as such, and only they become floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from ....spaces.models.exported_graph import module_path
from ....spaces.policies.candidate import QuantizedWeight
from ..half_bytes import HALF_BYTE, MIDDLE, in_half_bytes, needs_half_bytes

aten = torch.ops.aten


def quantize_tables(
    graph: fx.Graph, tables: Mapping[str, QuantizedWeight], stored: Callable[[str, Tensor], fx.Node]
) -> None:
    """Have the lookups of the embeddings in `tables` read integers, in place.

    Args:
        stored: adds a tensor to what the graph holds, under a name like the given one.
    """
    known: dict[str, list[fx.Node]] = {}
    for node in graph.find_nodes(op="call_function", target=aten.embedding.default):
        name = module_path(node)
        if name not in tables:
            continue
        with graph.inserting_before(node):
            if name not in known:
                known[name] = [stored(f"{name}_{part}", values) for part, values in _parts(tables[name]).items()]
            made = _looked_up(graph, known[name], node.args[1], tables[name])
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def _parts(table: QuantizedWeight) -> dict[str, Tensor]:
    integers = in_half_bytes(table.integers) if needs_half_bytes(table) else table.integers
    return {"q": torch.from_numpy(integers), "scale": torch.from_numpy(table.grid.scale[:, None].astype(np.float32))}


def _looked_up(graph: fx.Graph, stored: list[fx.Node], ids: Argument, table: QuantizedWeight) -> fx.Node:
    """The rows at `ids`, in floats."""
    rows, scale = (graph.call_function(aten.embedding.default, (part, ids)) for part in stored)
    if needs_half_bytes(table):
        low = graph.call_function(aten.bitwise_and.Scalar, (rows, 2**HALF_BYTE - 1))
        high = graph.call_function(aten.bitwise_right_shift.Tensor_Scalar, (rows, HALF_BYTE))
        rows = graph.call_function(aten.cat.default, ([low, high], -1))
        rows = graph.call_function(aten.slice.Tensor, (rows, -1, 0, table.integers.shape[1]))
        rows = graph.call_function(aten.sub.Tensor, (graph.call_function(aten.to.dtype, (rows, torch.float32)), MIDDLE))
    numbers = graph.call_function(aten.to.dtype, (rows, torch.float32))
    return graph.call_function(aten.mul.Tensor, (numbers, scale))
