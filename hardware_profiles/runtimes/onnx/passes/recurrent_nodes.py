"""Recurrent layers in 8 bits: their matrices stored as integers that a runtime dequantizes when it loads the file, or an LSTM as the one
operator of ONNX Runtime that multiplies them.

Either way a layer stays one operator, however many steps it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .....core.errors import LoweringError
from .....spaces.policies.candidate import QuantizedWeight
from .....spaces.policies.recurrent_weights import DYNAMIC_INT8
from ...node_names import RECURRENT, first_run, module_of_node
from ..graph_nodes import drop_unread_constants
from ..onnx_file import WeightsApart

GATE_ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN": (0,)}
"""The gates of ONNX in torch's numbering: update, reset, new of a GRU; in, out, forget, new of an LSTM."""

DOMAIN = "com.microsoft"
WEIGHT, RECURRENCE = 1, 2
"""Inputs of the operators: the matrix of the sequence, and that of the state."""


def write_recurrent_weights(
    lowered: WeightsApart, weights: Mapping[str, QuantizedWeight], choices: Mapping[str, str], dynamic_lstm: bool
) -> None:
    """Store the matrices of the layers in `choices` as integers, in place.

    Args:
        weights: path of a matrix -> its integers, as torch orders directions and gates.
        choices: layer -> one of `RECURRENT_WEIGHTS`.
        dynamic_lstm: whether the runtime has an LSTM that multiplies integers.

    Raises:
        LoweringError: a layer is not one operator of the graph, or has no kernel for what was chosen.
    """
    for name, choice in choices.items():
        for node in recurrent_nodes(lowered.model.graph, name):
            if choice == DYNAMIC_INT8 and not (dynamic_lstm and node.op_type == "LSTM"):
                raise LoweringError(
                    f"{name}: no kernel here multiplies the integers of a {node.op_type}; int8 stores them only"
                )
            _write(lowered, node, weights, name, choice == DYNAMIC_INT8)
    drop_unread_constants(lowered.model.graph)


def _write(
    lowered: WeightsApart, node: NodeProto, weights: Mapping[str, QuantizedWeight], name: str, is_dynamic: bool
) -> None:
    """Have one operator of a layer read both matrices as integers, dequantized or multiplied."""
    for index, kind in ((WEIGHT, "ih"), (RECURRENCE, "hh")):
        stored = _Stored(f"{node.name}/weight_{kind}", node, index, _directions(weights, name, kind))
        stored.check(lowered.model.graph)
        stored.multiply(lowered) if is_dynamic else stored.dequantize(lowered)
    if is_dynamic:
        node.op_type, node.domain = "DynamicQuantizeLSTM", DOMAIN
        if all(known.domain != DOMAIN for known in lowered.model.opset_import):
            lowered.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def recurrent_nodes(graph: GraphProto, layer: str) -> list[NodeProto]:
    """The operators that compute a recurrent layer, one for each time it is called.

    Raises:
        LoweringError: there is none.
    """
    found = [node for node in graph.node if node.op_type in RECURRENT and module_of_node(first_run(node.name)) == layer]
    if not found:
        raise LoweringError(f"recurrent layer {layer} is not in the exported graph")
    return found


def _directions(weights: Mapping[str, QuantizedWeight], name: str, kind: str) -> list[QuantizedWeight]:
    paths = (f"{name}.weight_{kind}_l0", f"{name}.weight_{kind}_l0_reverse")
    return [weights[path] for path in paths if path in weights]


class _Stored:
    """One matrix of an operator, of all directions: integers [directions, gates x units, inputs] and a scale for each row."""

    def __init__(self, name: str, node: NodeProto, index: int, directions: Sequence[QuantizedWeight]) -> None:
        self.name, self.node, self.index = name, node, index
        order = GATE_ORDER[node.op_type]
        self.integers = np.stack([_by_gate(weight.integers, order) for weight in directions])
        self.scale = np.stack([_by_gate(weight.grid.scale, order) for weight in directions]).astype(np.float32)

    def check(self, graph: GraphProto) -> None:
        """Hold the integers against the exported matrix, which differs by half a step at most."""
        exported = next((t for t in graph.initializer if t.name == self.node.input[self.index]), None)
        if exported is None:
            raise LoweringError(f"weight {self.node.input[self.index]} is not a constant of the exported graph")
        values, steps = numpy_helper.to_array(exported), self.scale[..., None]
        if values.shape != self.integers.shape or (np.abs(values - self.integers * steps) > 0.51 * steps).any():
            raise LoweringError(f"{self.name}: the exported matrix is not the one that was quantized")

    def dequantize(self, lowered: WeightsApart) -> None:
        """Have the operator read the integers times their scales.

        They pass through int32: OpenVINO 2026.4 would take int8 that is cast and multiplied for a quantized matrix, where anything else
        in the file is quantized, and refuses a GRU of such.
        """
        graph, integers = lowered.model.graph, f"{self.name}.q"
        lowered.weights[integers] = self.integers
        graph.initializer.append(numpy_helper.from_array(self.scale[..., None], f"{self.name}.scale"))
        wide, real, made = f"{integers}.int32", f"{integers}.float", f"{self.name}.dq"
        steps = [
            helper.make_node("Cast", [integers], [wide], wide, to=TensorProto.INT32),
            helper.make_node("Cast", [wide], [real], real, to=TensorProto.FLOAT),
            helper.make_node("Mul", [real, f"{self.name}.scale"], [made], made),
        ]
        self.node.input[self.index] = made
        for step in reversed(steps):
            graph.node.insert(0, step)

    def multiply(self, lowered: WeightsApart) -> None:
        """Have the operator, an LSTM, read the integers [directions, inputs, gates x units], their scales and zero points."""
        graph = lowered.model.graph
        lowered.weights[f"{self.name}.q"] = np.ascontiguousarray(self.integers.transpose(0, 2, 1))
        zero_points = np.zeros(self.scale.shape, np.int8)
        graph.initializer.append(numpy_helper.from_array(self.scale, f"{self.name}.scale"))
        graph.initializer.append(numpy_helper.from_array(zero_points, f"{self.name}.zero_point"))
        self.node.input[self.index] = f"{self.name}.q"
        self.node.input.extend([""] * (8 - len(self.node.input)))  # no peepholes, perhaps no states
        self.node.input.extend([f"{self.name}.scale", f"{self.name}.zero_point"])


def _by_gate(values: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Rows [gates x units, ..] in another order of gates."""
    gates = np.split(values, len(order))
    return np.concatenate([gates[gate] for gate in order])
