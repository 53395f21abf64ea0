"""Fuses linear layers that read one tensor into one product: the gates of a recurrent layer, or queries, keys and values.

Every product costs a call however small its matrix, and an integer product prepares its input each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from ...node_names import TOGETHER, layer_of
from ..graph_nodes import drop_unread, set_nodes, tensors_read
from ..onnx_file import WeightsApart

LINEAR = ("Gemm", "MatMul")


def fuse_parallel_linears(lowered: WeightsApart) -> None:
    """Compute all linear layers that read the same tensor and store their weights the same way by one node and a Split, in place.

    Every output channel keeps its weights, scale and bias: results are the same up to the order of sums.
    """
    fuser = _Fuser(lowered)
    groups = {branches[0].product.name: branches for branches in fuser.groups()}
    gone = {node.name for branches in groups.values() for branch in branches for node in branch.nodes}
    ordered: list[NodeProto] = []
    for node in fuser.graph.node:
        if node.name in groups:
            ordered += fuser.fused(groups[node.name])
        elif node.name not in gone:
            ordered.append(node)
    set_nodes(fuser.graph, [*fuser.weights_first, *ordered])
    drop_unread_weights(lowered)


@dataclass(frozen=True)
class _Branch:
    """A linear layer's product, and the addition of its bias where that is a node of its own."""

    product: NodeProto
    addition: NodeProto | None

    @property
    def nodes(self) -> list[NodeProto]:
        return [self.product] if self.addition is None else [self.product, self.addition]

    @property
    def bias(self) -> str | None:
        if self.addition is not None:
            return self.addition.input[1 - list(self.addition.input).index(self.product.output[0])]
        return self.product.input[2] if len(self.product.input) > 2 else None


class _Fuser:
    def __init__(self, lowered: WeightsApart) -> None:
        self.graph, self.weights = lowered.model.graph, lowered.weights
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.producers = {output: node for node in self.graph.node for output in node.output}
        self.readers: dict[str, list[NodeProto]] = {tensor.name: [] for tensor in self.graph.output}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.weights_first: list[NodeProto] = []
        self.made: dict[tuple, str] = {}

    def groups(self) -> list[list[_Branch]]:
        """Branches of one input and one kind, where there are at least two."""
        found: dict[tuple, list[_Branch]] = {}
        for node in self.graph.node:
            if node.op_type in LINEAR and (kind := self._kind(node)) is not None:
                branch = _Branch(node, self._addition(node))
                key = (
                    node.input[0],
                    node.op_type,
                    *map(str, node.attribute),
                    kind,
                    len(branch.nodes),
                    branch.bias is None,
                )
                found.setdefault(key, []).append(branch)
        return [
            branches
            for branches in found.values()
            if len({branch.product.input[1] for branch in branches}) == len(branches) > 1
        ]

    def fused(self, branches: Sequence[_Branch]) -> list[NodeProto]:
        """The nodes that replace `branches`."""
        first = branches[0]
        layers = [layer_of(branch.product.name) or "" for branch in branches]
        name = first.product.name.replace(f"/{layers[0]}/", f"/{TOGETHER.join(layers)}/")
        nodes = self._product(name, branches)
        made = nodes[0].output[0]
        sizes = [self._channels(branch.product) for branch in branches]
        outputs = [branch.nodes[-1].output[0] for branch in branches]
        read = [nodes[-1].output[0], self._constant(f"{made}.sizes", sizes, [np.array(sizes, np.int64)])]
        return [*nodes, helper.make_node("Split", read, outputs, name=f"{made}.Split", axis=-1)]

    def _product(self, name: str, branches: Sequence[_Branch]) -> list[NodeProto]:
        """The product of all `branches`, and the addition of their biases where that is a node of its own."""
        biases = [branch.bias for branch in branches if branch.bias is not None]
        bias = [self._constant(f"{name}/bias", biases, [self.constants[name] for name in biases])] if biases else []
        product = NodeProto()
        product.CopyFrom(branches[0].product)
        product.name, made = name, f"{name}.joined"
        del product.input[1:], product.output[:]
        product.input.append(self._fused_weight(name, [branch.product for branch in branches]))
        product.output.append(made)
        if branches[0].addition is None:
            product.input.extend(bias)
            return [product]
        return [product, helper.make_node("Add", [made, *bias], [f"{made}.biased"], name=f"{made}.Add")]

    def _kind(self, node: NodeProto) -> str | None:
        """How a layer stores its weight: "float", "integers" with a scale for each channel, or None for any other way."""
        if layer_of(node.name) is None or (len(node.input) > 2 and node.input[2] not in self.constants):
            return None
        if node.input[1] in self.weights:
            return "float"
        source = self.producers.get(node.input[1])
        if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in self.weights:
            return None
        return "integers" if self.constants[source.input[1]].ndim == 1 else None

    def _addition(self, product: NodeProto) -> NodeProto | None:
        """The addition of a bias to a MatMul that nothing else reads."""
        readers = self.readers.get(product.output[0], [])
        if product.op_type != "MatMul" or len(readers) != 1 or readers[0].op_type != "Add":
            return None
        others = [name for name in readers[0].input if name != product.output[0]]
        is_bias = len(others) == 1 and others[0] in self.constants
        return readers[0] if is_bias and self.constants[others[0]].shape == (self._channels(product),) else None

    def _channels(self, product: NodeProto) -> int:
        return self._stored(product).shape[_axis(product)]

    def _stored(self, product: NodeProto) -> np.ndarray:
        name = product.input[1]
        return self.weights[name if name in self.weights else self.producers[name].input[0]]

    def _fused_weight(self, name: str, products: Sequence[NodeProto]) -> str:
        """The concatenated weights of `products`, the same for every run of the same layers."""
        key = tuple(product.input[1] for product in products)
        if key not in self.made:
            axis, weight = _axis(products[0]), f"{name}/weight"
            values = np.concatenate([self._stored(product) for product in products], axis)
            if key[0] in self.weights:
                self.weights[weight] = values
                self.made[key] = weight
            else:
                self.weights[f"{weight}.q"] = values
                self.made[key] = self._dequantized(weight, [self.producers[tensor] for tensor in key])
        return self.made[key]

    def _dequantized(self, weight: str, sources: Sequence[NodeProto]) -> str:
        steps = []
        for index, part in ((1, "scale"), (2, "zero_point")):
            names = [source.input[index] for source in sources]
            steps.append(self._constant(f"{weight}.{part}", names, [self.constants[name] for name in names]))
        node = NodeProto()
        node.CopyFrom(sources[0])
        node.name = f"{weight}.dq"
        del node.input[:], node.output[:]
        node.input.extend([f"{weight}.q", *steps])
        node.output.append(node.name)
        self.weights_first.append(node)
        return node.name

    def _constant(self, name: str, of: Sequence[object], parts: Sequence[np.ndarray]) -> str:
        """A constant of the concatenated `parts`, stored once for all runs that want the same `of`."""
        if (key := tuple(of)) not in self.made:
            self.graph.initializer.append(numpy_helper.from_array(np.concatenate(parts), name))
            self.made[key] = name
        return self.made[key]


def _axis(product: NodeProto) -> int:
    """Of a weight's output channels: a Gemm of the exporter's holds [out, in], a MatMul [in, out]."""
    return 0 if any(a.name == "transB" and a.i for a in product.attribute) else 1


def drop_unread_weights(lowered: WeightsApart) -> None:
    """Remove what nothing reads any more: dequantizations, constants and weights."""
    drop_unread(lowered.model.graph, "DequantizeLinear")
    for name in lowered.weights.keys() - tensors_read(lowered.model.graph):
        del lowered.weights[name]
