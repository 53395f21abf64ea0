"""Nodes of an ONNX graph: which compute a layer or an addition of the model, and edits that several passes share, all in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from onnx import GraphProto, NodeProto

from ....core.errors import LoweringError
from ..node_names import WEIGHTED, layer_of, module_of_node

PASSED_ON = ("Identity", "Cast", "Dropout")
"""Operations that pass the model's input on unchanged."""


def nodes_of_layers(graph: GraphProto, layers: Iterable[str]) -> dict[str, list[NodeProto]]:
    """Layer (dotted module path) -> the nodes that compute it, one for each time it runs; they read one weight.

    Raises:
        LoweringError: there is none, or they do not share their weight.
    """
    runs: dict[str | None, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type in WEIGHTED:
            runs[layer_of(node.name)].append(node)
    found = {layer: runs.get(layer, []) for layer in layers}
    for layer, nodes in found.items():
        if (weights := len({node.input[1] for node in nodes})) != 1:
            raise LoweringError(f"layer {layer} has {weights} weights in the exported graph instead of one")
    return found


def addition_nodes(graph: GraphProto, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], NodeProto]:
    """(module path, i) -> the i-th addition of two computed tensors in that module.

    Raises:
        LoweringError: there is none.
    """
    computed = _computed(graph) if places else set()
    found: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "Add" and computed.issuperset(node.input):
            found[module_of_node(node.name)].append(node)
    for path, index in places:
        if index >= len(found[path]):
            raise LoweringError(f"addition {index} of {path or 'the model'} is not in the exported graph")
    return {(path, index): found[path][index] for path, index in places}


def _computed(graph: GraphProto) -> set[str]:
    """Tensors that depend on the model's input and are not that input itself; see `residual_additions`."""
    given = {value.name for value in graph.input}
    computed: set[str] = set()
    for node in graph.node:
        if node.op_type in PASSED_ON and given.issuperset(node.input):
            given.update(node.output)
        elif node.op_type != "Shape" and not (given | computed).isdisjoint(node.input):
            computed.update(node.output)
    return computed


def set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Make `nodes` the nodes of `graph`, in this order; references to its nodes before are no longer valid."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def tensors_read(graph: GraphProto) -> set[str]:
    """Tensors that a node reads, and the outputs of the graph."""
    return {name for node in graph.node for name in read_by(node)} | {tensor.name for tensor in graph.output}


def read_by(node: NodeProto) -> set[str]:
    """Tensors that a node reads, those that the body of a loop or branch reads too."""
    return {*node.input}.union(*(tensors_read(attribute.g) for attribute in node.attribute if attribute.HasField("g")))


def drop_unread(graph: GraphProto, operation: str) -> None:
    """Remove the nodes of `operation` whose results nothing reads, then the constants that nothing reads."""
    read = tensors_read(graph)
    set_nodes(graph, [n for n in graph.node if n.op_type != operation or not read.isdisjoint(n.output)])
    drop_unread_constants(graph)


def drop_unread_constants(graph: GraphProto) -> None:
    """Remove the constants that nothing reads."""
    drop_constants(graph, {tensor.name for tensor in graph.initializer} - tensors_read(graph))


def drop_constants(graph: GraphProto, names: Collection[str]) -> None:
    """Remove the constants of these names; `initializer.remove` would look for each by comparing the weights before it."""
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in names:
            del graph.initializer[index]


def drop_nodes(graph: GraphProto, made: Collection[str]) -> None:
    """Remove the nodes that make these tensors first."""
    for index in reversed(range(len(graph.node))):
        if graph.node[index].output[0] in made:
            del graph.node[index]
