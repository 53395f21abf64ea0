"""Linear layers whose weights have scales by groups of inputs, in an ONNX graph: as MatMulNBits, packed at their own bits, or
dequantized by operations that a runtime folds when it loads the file.

MatMulNBits is an operation of ONNX Runtime's domain (com.microsoft, "Contrib Operators") that OpenVINO reads too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .....core.errors import LoweringError
from .....spaces.policies.candidate import QuantizedWeight, per_input
from ..graph_nodes import set_nodes
from ..onnx_file import WeightsApart

DOMAIN = "com.microsoft"
BITS_OF_A_BYTE = 8
SMALLEST_BLOCK = 16
FLOAT_ACTIVATIONS = 1
"""MatMulNBits' accuracy level of a product in float32; any other may round what the layer reads."""


def write_groups(
    lowered: WeightsApart,
    weights: Mapping[str, QuantizedWeight],
    runs: Mapping[str, Sequence[NodeProto]],
    kernels: Collection[int],
) -> None:
    """Let layers read their `weights`, in place.

    Args:
        runs: layer -> the Gemm or MatMul nodes that compute it.
        kernels: bits that MatMulNBits multiplies no slower than floats; weights of others are dequantized.

    Raises:
        LoweringError: an exported weight is not the one that was quantized.
    """
    first: list[NodeProto] = []
    for layer, weight in weights.items():
        check_groups(lowered, runs[layer][0], weight)
        name = runs[layer][0].input[1]
        lowered.take(name)
        bits = (weight.grid.high - weight.grid.low).bit_length()
        if bits in kernels:
            _multiply_packed(lowered, runs[layer], name, weight, bits)
        else:
            first += _dequantized(lowered, runs[layer], name, weight)
    set_nodes(lowered.model.graph, [*first, *lowered.model.graph.node])
    domains = {opset.domain for opset in lowered.model.opset_import}
    if DOMAIN not in domains and any(node.domain == DOMAIN for node in lowered.model.graph.node):
        lowered.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def check_groups(lowered: WeightsApart, node: NodeProto, weight: QuantizedWeight) -> None:
    """Hold the integers against the exported weight, which differs by half a step at most; see `grids.check_same`.

    Raises:
        LoweringError: they differ by more, or in shape.
    """
    exported = lowered.weights.get(node.input[1])
    if exported is None:
        raise LoweringError(f"{node.name}: its weight is not a constant of the exported graph")
    exported = exported if is_turned(node) else exported.T
    if exported.shape != weight.integers.shape:
        raise LoweringError(
            f"{node.name}: weight of shape {list(exported.shape)} where {list(weight.integers.shape)} was expected"
        )
    step = per_input(weight.grid.scale, exported.shape, weight.group_size)
    if (np.abs(exported - weight.values()) > 0.51 * step).any():
        raise LoweringError(f"{node.name}: the exported weight is not the one that was quantized")


def is_turned(node: NodeProto) -> bool:
    """Whether a linear layer's node holds its weight as [out, in]: a Gemm of the exporter's; a MatMul holds the transpose."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _multiply_packed(
    lowered: WeightsApart, nodes: Sequence[NodeProto], name: str, weight: QuantizedWeight, bits: int
) -> None:
    outputs, inputs = weight.integers.shape
    offset = 2 ** (bits - 1)  # the operation's integers have no sign
    blocks = (_in_blocks(weight).astype(np.int16) + offset).astype(np.uint8)
    constants = {"packed": packed_bytes(blocks, bits), "scale": weight.grid.scale}
    if weight.grid.zero_point.any():
        constants["zero_point"] = packed_bytes(
            (weight.grid.zero_point.astype(np.int16) + offset).astype(np.uint8), bits
        )
    lowered.weights.update({f"{name}.{part}": values for part, values in constants.items()})
    unused = [""] * (4 - len(constants))  # optional inputs before the bias, which is the sixth
    shape = {"K": inputs, "N": outputs, "bits": bits, "block_size": blocks.shape[-1]}
    for node in nodes:
        bias = [*unused, node.input[2]] if len(node.input) > 2 else []
        read = [node.input[0], *(f"{name}.{part}" for part in constants), *bias]
        product = helper.make_node(
            "MatMulNBits", read, node.output, node.name, domain=DOMAIN, accuracy_level=FLOAT_ACTIVATIONS, **shape
        )
        node.CopyFrom(product)


def packed_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers [..., n] as bytes: at 4 bits two to a byte, the first in its lower half."""
    if bits == BITS_OF_A_BYTE:
        return values
    even = np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, values.shape[-1] % 2)])
    return even[..., ::2] | even[..., 1::2] << 4


def _in_blocks(weight: QuantizedWeight) -> np.ndarray:
    """A weight's integers [out, groups, inputs of a group], the last group filled up with zeros.

    Blocks are powers of two from `SMALLEST_BLOCK` on, as MatMulNBits takes them: a single group is no larger than it has to be.
    """
    outputs, inputs = weight.integers.shape
    size = min(weight.group_size, max(SMALLEST_BLOCK, 1 << (inputs - 1).bit_length()))
    return np.pad(weight.integers, ((0, 0), (0, -inputs % size))).reshape(outputs, -1, size)


def _dequantized(
    lowered: WeightsApart, nodes: Sequence[NodeProto], name: str, weight: QuantizedWeight
) -> list[NodeProto]:
    """The nodes that compute a weight from its integers: a Cast, zero points subtracted, scales multiplied, groups joined."""
    graph, (outputs, inputs) = lowered.model.graph, weight.integers.shape
    lowered.weights[f"{name}.q"] = blocks = _in_blocks(weight)
    steps: list[tuple[str, list[np.ndarray], dict]] = [
        ("Cast", [], {"to": TensorProto.FLOAT}),
        ("Sub", [weight.grid.zero_point[:, :, None].astype(np.float32)], {}),
        ("Mul", [weight.grid.scale[:, :, None]], {}),
        ("Reshape", [np.array([outputs, blocks[0].size])], {}),
        ("Slice", [np.array([0]), np.array([inputs]), np.array([1])], {}),
        ("Transpose", [], {"perm": [0, 1] if is_turned(nodes[0]) else [1, 0]}),
    ]
    made, first = f"{name}.q", []
    for operation, constants, attributes in steps:
        read, made = [made], f"{name}.{operation}"
        for number, values in enumerate(constants):
            read.append(f"{made}.{number}")
            graph.initializer.append(numpy_helper.from_array(values, read[-1]))
        first.append(helper.make_node(operation, read, [made], made, **attributes))
    for node in nodes:
        node.input[1] = made
    return first
