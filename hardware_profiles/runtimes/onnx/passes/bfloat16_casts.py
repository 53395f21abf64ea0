"""Layers in bfloat16 in an ONNX graph: weights stored as such, and Cast on either side of what is computed with them.

The layer itself stays an operation on float32, which every runtime has: it multiplies numbers of bfloat16 and sums them in
float32. Cast rounds to the nearest, of two to the even one (https://onnx.ai/onnx/operators/onnx__Cast.html).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .....core.errors import LoweringError
from .....spaces.policies.candidate import RoundedWeight
from ..graph_nodes import drop_unread_constants, set_nodes
from ..onnx_file import WeightsApart

STEP = 2.0**-8
"""More than rounding to bfloat16 changes a number by, relatively."""


def insert_bfloat16(
    lowered: WeightsApart,
    weights: Mapping[str, RoundedWeight],
    runs: Mapping[str, Sequence[NodeProto]],
    whole: Collection[str],
) -> None:
    """Let layers read their `weights` in bfloat16, in place; those of `whole` round what they read and make, too.

    Args:
        runs: layer -> the nodes that compute it.

    Raises:
        LoweringError: an exported weight is not the one that was rounded.
    """
    casts = _Casts(lowered)
    for layer, weight in weights.items():
        ends = [casts.end(node, weight.bias) for node in runs[layer]]
        casts.store_weight(runs[layer], weight.values)
        if weight.bias is not None:
            casts.store_bias(ends, f"{layer}.bias.bf16", weight.bias)
        if layer in whole:
            for node, end in zip(runs[layer], ends, strict=True):
                casts.round_input(node)
                casts.round_output(end)
    casts.finish()


class _Casts:
    def __init__(self, lowered: WeightsApart) -> None:
        self.lowered, self.graph = lowered, lowered.model.graph
        self.readers = {name: node for node in self.graph.node for name in node.input}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.after: dict[str, list[NodeProto]] = {}
        """Tensor -> nodes to insert right after the one that makes it."""

    def end(self, node: NodeProto, bias: np.ndarray | None) -> NodeProto:
        """The last node of a layer: `node`, or the addition of its bias after a matrix product."""
        reader = self.readers.get(node.output[0])
        if node.op_type != "MatMul" or bias is None or reader is None or reader.op_type != "Add":
            return node
        return reader if self._bias_of(reader, bias) is not None else node

    def _bias_of(self, end: NodeProto, bias: np.ndarray) -> int | None:
        """Which operand of a layer's last node is its bias."""
        for position, name in enumerate(end.input):
            if name in self.constants and list(self.constants[name].dims) == list(bias.shape):
                return position
        return None

    def store_weight(self, nodes: Sequence[NodeProto], values: np.ndarray) -> None:
        name = nodes[0].input[1]
        # MatMul holds the transpose of a linear layer's weight.
        values = values.T if nodes[0].op_type == "MatMul" else values
        check_rounded(nodes[0].name, self.lowered.take(name), values)
        stored = f"{name}.bf16"
        self.lowered.weights[stored] = values
        read = self._cast(stored, f"{stored}.float", TensorProto.FLOAT)
        for node in nodes:
            node.input[1] = read

    def store_bias(self, ends: Sequence[NodeProto], name: str, bias: np.ndarray) -> None:
        """Give the last nodes of a layer's runs its bias."""
        position = self._bias_of(ends[0], bias)
        if position is None:
            raise LoweringError(f"{ends[0].name}: the bias is not in the exported graph")
        self.graph.initializer.append(numpy_helper.from_array(bias, name))
        for end in ends:
            end.input[position] = name

    def round_input(self, node: NodeProto) -> None:
        made = f"{node.input[0]}.bf16.float"
        if made not in {name for nodes in self.after.values() for other in nodes for name in other.output}:
            self._rounded(node.input[0], made)
        node.input[0] = made

    def round_output(self, end: NodeProto) -> None:
        made, end.output[0] = end.output[0], f"{end.output[0]}.exact"
        self._rounded(end.output[0], made)

    def _rounded(self, tensor: str, made: str) -> None:
        self._cast(self._cast(tensor, f"{made}.rounded", TensorProto.BFLOAT16), made, TensorProto.FLOAT)

    def _cast(self, tensor: str, made: str, to: int) -> str:
        self.after.setdefault(tensor, []).append(helper.make_node("Cast", [tensor], [made], f"{made}.cast", to=to))
        return made

    def finish(self) -> None:
        """Write all nodes back in an order where every tensor is made before it is read; constants that nothing reads go."""
        nodes, ordered = list(self.graph.node), []
        made = {name for others in (nodes, *self.after.values()) for node in others for name in node.output}
        waiting = [node for tensor in self.after if tensor not in made for node in self.after[tensor]]
        for node in [*waiting, *nodes]:
            self._place(node, ordered)
        set_nodes(self.graph, ordered)
        drop_unread_constants(self.graph)

    def _place(self, node: NodeProto, ordered: list[NodeProto]) -> None:
        ordered.append(node)
        for tensor in node.output:
            for follower in self.after.get(tensor, ()):
                self._place(follower, ordered)


def check_rounded(name: str, exported: np.ndarray, rounded: np.ndarray) -> None:
    """Hold a rounded weight against the exported one: some of each channel are enough, see `grids.check_same`.

    Raises:
        LoweringError: they differ by more than rounding does, or in shape.
    """
    some = tuple(slice(None) if axis < 2 else slice(2) for axis in range(exported.ndim))
    same = exported.shape == rounded.shape
    if not same or (np.abs(exported[some] - rounded[some].astype(np.float32)) > STEP * np.abs(exported[some])).any():
        raise LoweringError(f"{name}: the exported weight is not the one that was rounded to bfloat16")
