"""A candidate as a TensorFlow Lite file: its float graph with the candidate's own grids, written operation by operation.

Google's converter (litert-torch) takes some nine seconds for each architecture, and its quantizer chooses grids of its own;
this takes milliseconds and keeps the candidate's.
"""

from __future__ import annotations

from pathlib import Path

from ....core.batch import Batch, repeated
from ....core.errors import LoweringError
from ....spaces.policies.candidate import Candidate, QuantParams
from ..node_names import RECURRENT
from ..onnx.graph_cache import GraphCache
from ..onnx.graph_nodes import addition_nodes, nodes_of_layers
from ..onnx.static_graph import StaticGraph, export_static
from .graph import LiteGraph
from .layers import Layers
from .operations import CONVERTERS

static_graphs = GraphCache(export_static)
"""Of this process."""


def lower(candidate: Candidate, example_input: Batch, batch: int, path: Path) -> Path:
    """Write `candidate` for inputs of exactly the shape of the example's, repeated to a batch.

    Raises:
        LoweringError: the model cannot be exported, or has an operation or a weight that TensorFlow Lite has not.
    """
    if any(weight.group_size for weight in candidate.quantization.weights.values()):
        raise LoweringError("LiteRT takes no weights with scales by groups of inputs: leave weight_group_size at 0")
    if candidate.quantization.embeddings:
        raise LoweringError("LiteRT looks rows up in tables of floats only: leave embedding_bits at 32")
    static = static_graphs.graph_of(candidate.model, repeated(example_input, batch))
    graph = LiteGraph(static, _grids(static, candidate))
    layers = Layers(graph, candidate)
    for node in static.graph.node:
        if node.output[0] in graph.fused:
            continue
        if layers.takes(node):
            layers.convert(node)
        elif node.op_type in CONVERTERS:
            CONVERTERS[node.op_type](graph, node)
        else:
            known = (
                "has no recurrent layers"
                if node.op_type in RECURRENT
                else f"does not know the operation {node.op_type}"
            )
            raise LoweringError(f"{node.name}: LiteRT lowering {known}")
    graph.write(path)
    return path


def _grids(static: StaticGraph, candidate: Candidate) -> dict[tuple[str, int], QuantParams]:
    """(first output of a node, operand) -> the grid it reads that operand on."""
    quantization, graph = candidate.quantization, static.graph
    runs = nodes_of_layers(graph, quantization.inputs)
    added = addition_nodes(graph, {(path, index) for path, index, _ in quantization.additions})
    found = {(node.output[0], 0): grid for name, grid in quantization.inputs.items() for node in runs[name]}
    for (path, index, operand), grid in quantization.additions.items():
        found[added[path, index].output[0], operand] = grid
    return found
