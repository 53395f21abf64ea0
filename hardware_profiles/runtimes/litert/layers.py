"""Convolutions, linear layers and residual additions in TensorFlow Lite, in integers where they and their readers allow it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from ai_edge_litert.schema_py_generated import ActivationFunctionType, Padding
from onnx import NodeProto, helper

from ....core.errors import LoweringError
from ....spaces.policies.candidate import Candidate, QuantizedWeight, QuantParams, RoundedWeight
from ..node_names import WEIGHTED, layer_of
from ..onnx.passes.bfloat16_casts import check_rounded
from ..onnx.passes.grids import check_same
from .graph import LiteGraph, Value, channels_last, natural
from .tflite_model import Affine


class Layers:
    """Converts the nodes that a policy can quantize."""

    def __init__(self, graph: LiteGraph, candidate: Candidate) -> None:
        self.graph, self.candidate = graph, candidate
        self._weights: dict[str, Value] = {}

    def takes(self, node: NodeProto) -> bool:
        """Whether `node` is a layer or an addition; a product of two computed tensors is neither."""
        return node.op_type == "Add" or (node.op_type in WEIGHTED and node.input[1] in self.graph.static.constants)

    def convert(self, node: NodeProto) -> None:
        """Write `node`, fused with its bias and the activation after it where that is possible."""
        bias, end = self._bias(node)
        end, activation = _activation(self.graph, end)
        if node.op_type == "Add":
            made = self._add(node, end, activation)
        elif node.op_type == "Conv":
            made = self._convolution(node, end, bias, activation)
        else:
            made = self._linear(node, end, bias, activation)
        if self._is_bfloat16(node):
            made = self.graph.rounded(made, end)
        self.graph.put(end, self.graph.bounded(made) if made.grid else made)

    def _is_bfloat16(self, node: NodeProto) -> bool:
        return node.op_type != "Add" and self.candidate.policy.layer(layer_of(node.name) or "").is_bfloat16

    def _grid_of_result(self, node: NodeProto, end: str) -> QuantParams | None:
        """The grid that a layer or addition writes; None where it computes in float32."""
        operands = (0, 1) if node.op_type == "Add" else (0,)
        on_grids = all((node.output[0], operand) in self.graph.grids for operand in operands)
        layer = layer_of(node.name)
        if on_grids and (node.op_type == "Add" or layer in self.candidate.quantization.weights):
            return self.graph.grid_after(end)
        return None

    def _bias(self, node: NodeProto) -> tuple[np.ndarray, str]:
        """A layer's bias [channels], zeros where it has none, and the tensor that has it: a MatMul's is added by an Add."""
        graph, end = self.graph, node.output[0]
        if node.op_type == "Add":
            return np.zeros(0), end
        channels = graph.constant_of(node.input[1]).shape[0 if node.op_type != "MatMul" else -1]
        if len(node.input) > 2:
            bias = graph.constant_of(node.input[2])
        elif (added := self._added_bias(node, channels)) is not None:
            bias, end = added
            graph.fused.add(end)
        else:
            return np.zeros(channels), end
        stored = self._stored_bias(layer_of(node.name) or "")
        return bias if stored is None else stored, end

    def _added_bias(self, node: NodeProto, channels: int) -> tuple[np.ndarray, str] | None:
        """The constant [channels] that an Add adds to a MatMul which nothing else reads, and the sum's name."""
        following = self.graph.readers.get(node.output[0], [])
        if node.op_type != "MatMul" or len(following) != 1 or following[0][0].op_type != "Add":
            return None
        addition, operand = following[0]
        bias = self.graph.static.constants.get(addition.input[1 - operand])
        return (bias, addition.output[0]) if bias is not None and bias.shape == (channels,) else None

    def _stored_bias(self, layer: str) -> np.ndarray | None:
        """The bias that the candidate stores with a quantized or rounded weight."""
        quantization = self.candidate.quantization
        stored = quantization.weights.get(layer) or quantization.bfloat16.get(layer)
        return stored.bias if stored is not None else None

    def _add(self, node: NodeProto, end: str, activation: int) -> Value:
        grid = self._grid_of_result(node, end)
        if grid is None:
            values = [self.graph.get_read(node, operand) for operand in (0, 1)]
        else:
            values = [self.graph.get_on(name, self.graph.grids[node.output[0], i]) for i, name in enumerate(node.input)]
        given = self.graph.together(node.input, values)
        order = max(given, key=lambda value: len(value.order)).order
        return self._result("ADD", given, node, end, order, grid, activation)

    def _linear(self, node: NodeProto, end: str, bias: np.ndarray, activation: int) -> Value:
        graph, grid = self.graph, self._grid_of_result(node, end)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("transA") or attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
            raise LoweringError(f"{node.name}: LiteRT lowering takes matrix products without factors only")
        rows = lambda values: values if attributes.get("transB") else values.T  # noqa: E731
        # A linear layer with a float input and an integer weight is quantized dynamically.
        dynamic = self.candidate.policy.layer(layer_of(node.name) or "").is_dynamic
        weight = self._weight(node, rows, 0, dynamic or grid is not None)
        given = self._input(node, grid)
        given = graph.ordered(given, natural(len(given.order)))
        inputs = [given, weight, self._bias_tensor(node, bias, grid)]
        order = natural(len(given.order))
        options = {"keepNumDims": True, "asymmetricQuantizeInputs": dynamic}
        return self._result("FULLY_CONNECTED", inputs, node, end, order, grid, activation, **options)

    def _convolution(self, node: NodeProto, end: str, bias: np.ndarray, activation: int) -> Value:
        """Of one dimension too, as one of two with a height of 1."""
        graph, grid = self.graph, self._grid_of_result(node, end)
        given = self._input(node, grid)
        rank = len(given.order)
        if rank not in (3, 4):
            raise LoweringError(f"{node.name}: LiteRT has no convolution of {rank - 2} dimensions")
        given = as_image(graph, graph.ordered(given, channels_last(rank)), node.input[0])
        window = Window(node, rank, given.shape[1:3], graph.constant_of(node.input[1]).shape[2:])
        channels = given.shape[-1]
        filters = graph.constant_of(node.input[1]).shape[0]
        depthwise = window.groups == channels > 1 and filters % channels == 0
        weight = self._weight(node, lambda values: _filters(values, depthwise), 3 if depthwise else 0, grid is not None)
        given, padding = window.padded(graph, given)
        options = {
            "padding": padding, "strideH": window.strides[0], "strideW": window.strides[1],
            "dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1],
        }  # fmt: skip
        kind = "CONV_2D"
        if depthwise:
            kind, options["depthMultiplier"] = "DEPTHWISE_CONV_2D", filters // channels
        inputs = [given, weight, self._bias_tensor(node, bias, grid)]
        return self._result(kind, inputs, node, end, channels_last(rank), grid, activation, **options)

    def _result(
        self, kind: str, inputs: Sequence[Value], node: NodeProto, end: str, order: tuple[int, ...],
        grid: QuantParams | None, activation: int, **options: object,
    ) -> Value:  # fmt: skip
        """Write an operation under the name of its node, which contains the path of its layer."""
        stored = tuple(self.graph.shape_of(end)[axis] for axis in order)
        options["fusedActivationFunction"] = activation
        if len(stored) == 3 and "CONV" in kind:
            image = self.graph.emit(
                kind, inputs, node.name, (stored[0], 1, *stored[1:]), None, grid, "float32", **options
            )
            return self.graph.emit("RESHAPE", [image, self.graph.indices("shape", *stored)], end, stored, order, grid)
        return self.graph.emit(kind, inputs, node.name, stored, order, grid, "float32", **options)

    def _input(self, node: NodeProto, grid: QuantParams | None) -> Value:
        if self._is_bfloat16(node):
            return self.graph.get_rounded(node.input[0])
        if grid is None:
            return self.graph.get_read(node, 0)
        return self.graph.get_on(node.input[0], self.graph.grids[node.output[0], 0])

    def _weight(self, node: NodeProto, arrange, axis: int, integers: bool) -> Value:
        """A layer's weight as its operation wants it; one that computes in float32 reads stored integers as floats."""
        layer, name = layer_of(node.name) or "", node.input[1]
        if name in self._weights:
            return self._weights[name]
        quantized = self.candidate.quantization.weights.get(layer)
        if quantized is not None:
            stored = self._quantized(node, quantized, arrange, axis)
        else:
            values = np.ascontiguousarray(arrange(self.graph.constant_of(name)))
            rounded = self.candidate.quantization.bfloat16.get(layer)
            if rounded is None:
                return self._weights.setdefault(name, self.graph.constant(name, values))
            stored = self._rounded(node, rounded, arrange)
        if not integers:
            stored = self.graph.emit("DEQUANTIZE", [stored], name, stored.shape)
        return self._weights.setdefault(name, stored)

    def _quantized(self, node: NodeProto, weight: QuantizedWeight, arrange, axis: int) -> Value:
        values = self.graph.constant_of(node.input[1])
        transposed = node.op_type == "MatMul"
        integers = weight.integers.T if transposed else weight.integers
        check_same(node.name, values, integers, weight.grid.scale, axis=int(transposed))
        affine = Affine(weight.grid.scale, weight.grid.zero_point, axis)
        return self.graph.constant(node.input[1], np.ascontiguousarray(arrange(integers)), affine)

    def _rounded(self, node: NodeProto, weight: RoundedWeight, arrange) -> Value:
        """A weight in bfloat16 as float16, which LiteRT widens once as it loads the file, where it would widen bfloat16 at
        every run; the two differ by 2^-25 at most, and only below 2^-14."""
        values = weight.values.T if node.op_type == "MatMul" else weight.values
        check_rounded(node.name, self.graph.constant_of(node.input[1]), values)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(arrange(values.astype(np.float16)))
        if np.isinf(stored).any():
            raise LoweringError(f"{node.name}: a weight beyond 65504, which LiteRT stores no half of")
        return self.graph.constant(node.input[1], stored)

    def _bias_tensor(self, node: NodeProto, bias: np.ndarray, grid: QuantParams | None) -> Value:
        """In int32 on the grid of the layer's sums where it computes in integers (arXiv:1712.05877, section 2.4)."""
        name = f"{node.name}/bias"
        if grid is None:
            return self.graph.constant(name, bias.astype(np.float32))
        weight = self.candidate.quantization.weights[layer_of(node.name) or ""]
        scale = self.graph.grids[node.output[0], 0].scale * weight.grid.scale.astype(np.float64)
        limits = np.iinfo(np.int32)
        integers = np.clip(np.rint(bias / scale), limits.min, limits.max).astype(np.int32)
        return self.graph.constant(name, integers, Affine(scale, np.zeros(len(scale))))


class Window:
    """How a convolution or pooling moves over an image [height, width]."""

    def __init__(self, node: NodeProto, rank: int, size: Sequence[int], kernel: Sequence[int] = ()) -> None:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        flat = [1] * (4 - rank)  # the height of what has only one dimension
        pads = list(attributes.get("pads", [0] * 2 * (rank - 2)))
        before, after = pads[: rank - 2], pads[rank - 2 :]
        self.kernel = flat + list(kernel or attributes["kernel_shape"])
        self.strides = flat + list(attributes.get("strides", [1] * (rank - 2)))
        self.dilations = flat + list(attributes.get("dilations", [1] * (rank - 2)))
        self.pads = list(zip([0] * len(flat) + before, [0] * len(flat) + after, strict=True))
        self.groups = int(attributes.get("group", 1))
        self._size = size

    def reach(self, axis: int) -> int:
        """Elements from the first to the last that the kernel reads along an axis."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def padded(
        self, graph: LiteGraph, image: Value, kind: str = "PAD", *fill: int, spelt_out: bool = False
    ) -> tuple[Value, int]:
        """`image` with the padding that the operation cannot do itself, or all of it, and the padding left to the operation."""
        if not any(map(any, self.pads)):
            return image, Padding.VALID
        if not spelt_out and self.pads == [self._same(axis) for axis in (0, 1)]:
            return image, Padding.SAME
        widths = np.array([(0, 0), *self.pads, (0, 0)], np.int32)
        shape = tuple(int(size + sum(width)) for size, width in zip(image.shape, widths, strict=True))
        made = graph.emit(kind, [image, graph.flat.constant("pads", widths), *fill], "padded", shape, None, image.grid)
        return made, Padding.VALID

    def _same(self, axis: int) -> tuple[int, int]:
        """What TensorFlow pads an axis with so that its size is divided by the stride, rounded up."""
        size, stride = self._size[axis], self.strides[axis]
        total = max((math.ceil(size / stride) - 1) * stride + self.reach(axis) - size, 0)
        return total // 2, total - total // 2


def as_image(graph: LiteGraph, value: Value, name: str) -> Value:
    """A tensor with channels last as [batch, height, width, channels]."""
    if len(value.shape) == 4:
        return value
    shape = (value.shape[0], 1, *value.shape[1:])
    return graph.emit("RESHAPE", [value, graph.indices("shape", *shape)], name, shape, None, value.grid)


def _filters(values: np.ndarray, depthwise: bool) -> np.ndarray:
    """[out, in / groups, (height,) width] as [out, height, width, in / groups], or [1, height, width, out] if depthwise."""
    if values.ndim == 3:
        values = values[:, :, None]
    return values.transpose(1, 2, 3, 0) if depthwise else values.transpose(0, 2, 3, 1)


def _activation(graph: LiteGraph, end: str) -> tuple[str, int]:
    """The tensor after the activation that reads `end`, and the activation, where it is fused; else `end` itself."""
    following = graph.readers.get(end, [])
    if len(following) == 1:
        node, _ = following[0]
        fusable = node.op_type == "Relu" or (node.op_type == "Clip" and is_relu6(graph, node))
        if fusable and (node.output[0], 0) not in graph.grids:
            graph.fused.add(node.output[0])
            kind = ActivationFunctionType.RELU if node.op_type == "Relu" else ActivationFunctionType.RELU6
            return node.output[0], kind
    return end, ActivationFunctionType.NONE


def is_relu6(graph: LiteGraph, node: NodeProto) -> bool:
    """Whether a Clip is one between 0 and 6."""
    ends = [graph.static.constants.get(name) for name in node.input[1:]]
    return [None if end is None else float(end) for end in ends] == [0, 6]
