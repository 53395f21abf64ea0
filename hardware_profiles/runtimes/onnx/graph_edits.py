"""Edits of an ONNX graph that several passes share, all in place."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto, NodeProto


def set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Make `nodes` the nodes of `graph`, in this order; references to its nodes before are no longer valid."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def tensors_read(graph: GraphProto) -> set[str]:
    """Tensors that a node reads, and the outputs of the graph."""
    return {name for node in graph.node for name in node.input} | {tensor.name for tensor in graph.output}


def drop_unread(graph: GraphProto, operation: str) -> None:
    """Remove the nodes of `operation` whose results nothing reads, then the constants that nothing reads."""
    read = tensors_read(graph)
    set_nodes(graph, [n for n in graph.node if n.op_type != operation or not read.isdisjoint(n.output)])
    drop_unread_constants(graph)


def drop_unread_constants(graph: GraphProto) -> None:
    """Remove the constants that nothing reads."""
    read = tensors_read(graph)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
