"""The graph of a candidate on its way from ONNX to TensorFlow Lite: tensors, the order of their axes, and their grids.

TensorFlow Lite's convolutions take channels last, ONNX's second. A tensor keeps the order in which it was written until a
reader needs another one, so that only changes of order cost a transposition.

TensorFlow Lite has no kernel that reads integers and writes floats: an operation computes in integers only if every reader of
its result also reads integers. The operation then writes the grid that they read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import NodeProto, ValueInfoProto, helper

from ....core.errors import LoweringError
from ....spaces.policies.candidate import QuantParams
from ..onnx.static_graph import StaticGraph
from .tflite_model import Affine, TfliteModel

KEEPS_GRID = (
    "Relu",
    "Clip",
    "MaxPool",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Identity",
    "Dropout",
)
"""Operations that commute with quantization to a grid that contains zero."""

LOWEST, HIGHEST = 0, 255
"""The ends of 8-bit grids here; TensorFlow Lite's are 128 lower."""

Order = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor as it was written.

    Attributes:
        tensor: its index in the TensorFlow Lite model.
        shape: as it is stored.
        order: axis `k` of it is axis `order[k]` of the ONNX tensor.
        grid: the quantization parameters of its int8 numbers; None where it holds float32, or another type.
        dtype: of what is on no grid, as numpy calls it.
    """

    tensor: int
    shape: tuple[int, ...]
    order: Order
    grid: QuantParams | None = None
    dtype: str = "float32"

    def axis(self, of: int) -> int:
        """Where axis `of` of the ONNX tensor is."""
        return self.order.index(of % len(self.order))


def natural(rank: int) -> Order:
    """The order of ONNX."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Batch, positions, channels."""
    return (0, *range(2, rank), 1)


def key_of(grid: QuantParams) -> tuple[float, int, int, int]:
    """Equal for equal grids of a whole tensor."""
    return float(grid.scale), int(grid.zero_point), grid.low, grid.high


def affine_of(grid: QuantParams) -> Affine:
    """A grid of a tensor on unsigned integers, on signed ones."""
    return Affine(grid.scale, grid.zero_point.astype(np.int64) - 128)


class LiteGraph:
    """A model while its nodes are converted one by one.

    Args:
        static: the float graph.
        grids: (first output of a node, operand) -> the grid it reads that operand on.
    """

    def __init__(self, static: StaticGraph, grids: dict[tuple[str, int], QuantParams]) -> None:
        self.flat = TfliteModel()
        self.static, self.grids = static, grids
        self.readers: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in static.graph.node:
            for operand, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, operand))
        self.fused: set[str] = set()
        self._values: dict[tuple[str, object], Value] = {}
        self._ordered: dict[tuple[int, Order], Value] = {}
        self.inputs = {info.name: self._input(info) for info in static.graph.input}
        self._outputs = [info.name for info in static.graph.output]

    def _input(self, info: ValueInfoProto) -> Value:
        shape, dtype = self.static.shapes[info.name], helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        value = Value(self.flat.tensor(info.name, shape, dtype.name), shape, natural(len(shape)), dtype=dtype.name)
        self.put(info.name, value)
        return value

    def write(self, path: Path) -> None:
        """Write the file, once every node is converted."""
        made = {name: self.ordered(self.get(name), natural(len(self.static.shapes[name]))) for name in self._outputs}
        inputs = {name: value.tensor for name, value in self.inputs.items()}
        self.flat.write(path, inputs, {name: value.tensor for name, value in made.items()})

    def constant_of(self, name: str) -> np.ndarray:
        """A tensor that has to be known before the input comes.

        Raises:
            LoweringError: it is not.
        """
        if name not in self.static.constants:
            raise LoweringError(f"LiteRT needs {name} to be a constant, but the model computes it from its input")
        return self.static.constants[name]

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of a tensor, in ONNX's order."""
        return self.static.shapes[name] if name in self.static.shapes else self.static.constants[name].shape

    def put(self, name: str, value: Value) -> None:
        """Record that the ONNX tensor `name` was written as `value`."""
        self._values[name, key_of(value.grid) if value.grid else None] = value

    def get(self, name: str) -> Value:
        """The ONNX tensor `name` in float32.

        Raises:
            LoweringError: it is an input of integers or booleans, which is to be converted before anything computes with it.
        """
        value = self.get_as_it_is(name)
        if value.dtype != "float32":
            raise LoweringError(f"LiteRT lowering computes in floats, and something reads {name} as {value.dtype}")
        return value

    def get_as_it_is(self, name: str) -> Value:
        """The ONNX tensor `name` in float32, or in the type of the model's input that it is a view of."""
        if (name, None) not in self._values and name in self.static.constants:
            self.put(name, self.constant(name, self.static.constants[name].astype(np.float32)))
        return self._values[name, None]

    def get_on(self, name: str, grid: QuantParams) -> Value:
        """The ONNX tensor `name` in integers on `grid`."""
        wanted = (name, key_of(grid))
        if wanted not in self._values:
            # Somebody may have written it on another grid.
            source = next((value for (of, _), value in self._values.items() if of == name), None) or self.get(name)
            self._values[wanted] = self.bounded(self.emit("QUANTIZE", [source], name, source.shape, source.order, grid))
        return self._values[wanted]

    def get_read(self, node: NodeProto, operand: int) -> Value:
        """An operand of `node` in float32, rounded to the grid it is read on, where there is one."""
        name, grid = node.input[operand], self.grids.get((node.output[0], operand))
        if grid is None:
            return self.get(name)
        rounded = (name, ("float", *key_of(grid)))
        if rounded not in self._values:
            source = self.get_on(name, grid)
            self._values[rounded] = self.emit("DEQUANTIZE", [source], name, source.shape, source.order)
        return self._values[rounded]

    def get_rounded(self, name: str) -> Value:
        """The ONNX tensor `name` in float32, rounded to bfloat16."""
        if (name, "bfloat16") not in self._values:
            self._values[name, "bfloat16"] = self.rounded(self.get(name), name)
        return self._values[name, "bfloat16"]

    def rounded(self, value: Value, name: str) -> Value:
        """A value in float32, rounded to bfloat16."""
        half = self.flat.tensor(name, value.shape, "bfloat16")
        self.flat.operation("CAST", [value.tensor], [half])
        return self.emit("CAST", [half], name, value.shape, value.order)

    def constant(
        self, name: str, values: np.ndarray, affine: Affine | None = None, order: Order | None = None
    ) -> Value:
        """A constant in the order it is given in, that of ONNX by default."""
        index = self.flat.constant(name, values, affine)
        return Value(index, values.shape, natural(values.ndim) if order is None else order)

    def indices(self, name: str, *numbers: int) -> int:
        """The tensor of an operation's setting, int32."""
        return self.flat.constant(name, np.array(numbers, np.int32))

    def emit(
        self,
        kind: str,
        inputs: Sequence[Value | int],
        name: str,
        shape: Sequence[int],
        order: Order | None = None,
        grid: QuantParams | None = None,
        dtype: str = "float32",
        **options: object,
    ) -> Value:
        """Add an operation that writes one tensor, in ONNX's order by default."""
        stored, affine = ("int8", affine_of(grid)) if grid else (dtype, None)
        made = self.flat.tensor(name, shape, stored, affine)
        given = [value.tensor if isinstance(value, Value) else value for value in inputs]
        self.flat.operation(kind, given, [made], **options)
        return Value(made, tuple(shape), natural(len(shape)) if order is None else order, grid, dtype)

    def bounded(self, value: Value) -> Value:
        """`value` within its grid, which the eight bits it is in may be wider than."""
        grid = value.grid
        assert grid is not None
        for kind, end, furthest in (("MAXIMUM", grid.low, LOWEST), ("MINIMUM", grid.high, HIGHEST)):
            if end != furthest:
                limit = self.flat.constant("limit", np.full((), end - 128, np.int8), affine_of(grid))
                value = self.emit(kind, [value, limit], kind.lower(), value.shape, value.order, grid)
        return value

    def ordered(self, value: Value, order: Order) -> Value:
        """`value` with its axes in `order`."""
        if value.order == order:
            return value
        if (value.tensor, order) not in self._ordered:
            moves = tuple(value.order.index(axis) for axis in order)
            shape = tuple(value.shape[move] for move in moves)
            real = [move for move in moves if value.shape[move] != 1]
            kind = "RESHAPE" if real == sorted(real) else "TRANSPOSE"  # axes of one element may be moved for nothing
            setting = self.indices("order", *(shape if kind == "RESHAPE" else moves))
            made = self.emit(kind, [value, setting], kind.lower(), shape, order, value.grid, value.dtype)
            self._ordered[value.tensor, order] = made
        return self._ordered[value.tensor, order]

    def together(self, names: Sequence[str], values: Sequence[Value]) -> list[Value]:
        """Values that are broadcast to each other, all in the order of the first computed one of highest rank."""
        rank = max(len(value.order) for value in values)
        order = next(
            v.order
            for n, v in zip(names, values, strict=True)
            if len(v.order) == rank and n not in self.static.constants
        )
        return [self._widened(name, value, order) for name, value in zip(names, values, strict=True)]

    def _widened(self, name: str, value: Value, order: Order) -> Value:
        missing = len(order) - len(value.order)
        if value.shape in ((), (1,)):
            return value
        if name in self.static.constants:
            values = self.static.constants[name].astype(np.float32)
            return self.constant(name, values.reshape((1,) * missing + values.shape).transpose(order), order=order)
        if missing:
            value = self.ordered(value, natural(len(value.order)))
            shape = (1,) * missing + value.shape
            value = self.emit("RESHAPE", [value, self.indices("shape", *shape)], name, shape)
        return self.ordered(value, order)

    def grid_after(self, name: str) -> QuantParams | None:
        """The grid to write `name` on: the widest of those it is read on; None where something reads it in float32."""
        found = self._grids_after(name)
        return (
            max(found, key=lambda grid: (grid.high - grid.low, (grid.high - grid.low) * grid.scale)) if found else None
        )

    def _grids_after(self, name: str) -> list[QuantParams]:
        if name in self._outputs:
            return []
        found: list[QuantParams] = []
        for node, operand in self.readers.get(name, []):
            grid = self.grids.get((node.output[0], operand))
            through = not grid and node.op_type in KEEPS_GRID and operand == 0
            grids = [grid] if grid else self._grids_after(node.output[0]) if through else []
            if not grids:
                return []
            found += grids
        return found
