"""A model whose weights are kept outside its graph, and the ONNX file that is written from both without copying the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ....core.errors import LoweringError
from ..node_names import WEIGHTED
from .graph_nodes import drop_constants

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Fields of ModelProto, GraphProto and TensorProto (onnx.proto)."""


@dataclass(frozen=True)
class WeightsApart:
    """An ONNX model without the weights of its layers and the tables of its embeddings.

    Attributes:
        model: its nodes, and all other constants.
        weights: name -> values.
    """

    model: ModelProto
    weights: dict[str, np.ndarray]

    def take(self, name: str) -> np.ndarray:
        """A weight, which is no longer among them then.

        Raises:
            LoweringError: there is none of that name.
        """
        if name not in self.weights:
            raise LoweringError(f"weight {name} is not a constant of the exported graph")
        return self.weights.pop(name)


def weights_apart(model: ModelProto) -> WeightsApart:
    """The nodes and other constants of `model`, which is changed, and apart from them the weights of layers and the tables that rows are
    looked up in."""
    graph = model.graph
    names = {node.input[1] for node in graph.node if node.op_type in WEIGHTED}
    tables = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2}
    names |= tables & {node.input[0] for node in graph.node if node.op_type == "Gather"}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in names}
    drop_constants(graph, names)
    apart = ModelProto()
    apart.CopyFrom(model)  # a message keeps the memory of all that was ever in it
    return WeightsApart(apart, weights)


def write(model: ModelProto, weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Write `model` with `weights` added to its constants.

    A message may be encoded in pieces, which readers put together: "encoding the concatenation of two messages is the same
    as merging them" (Protocol Buffers, encoding, "Last One Wins"). So the graph comes twice: nodes first, then weights.
    """
    pieces: list[bytes | memoryview] = []
    for name, values in weights.items():
        values = np.ascontiguousarray(values)
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        head = TensorProto(name=name, dims=values.shape, data_type=kind).SerializeToString()
        head += _field(RAW_DATA, values.nbytes)
        pieces += [_field(INITIALIZER, len(head) + values.nbytes), head, values.reshape(-1).view(np.uint8).data]
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        file.write(_field(GRAPH, sum(map(len, pieces))))
        file.writelines(pieces)


def _field(number: int, length: int) -> bytes:
    """The header of field `number` with `length` bytes."""
    return bytes([number << 3 | 2]) + _varint(length)


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
