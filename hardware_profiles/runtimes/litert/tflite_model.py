"""A TensorFlow Lite model while it is being built, and the file it becomes.

The format is a flatbuffer (tensorflow/lite/schema/schema.fbs); the classes of its schema come with ai-edge-litert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated

schema: Any = schema_py_generated
"""Its annotations know neither that it takes arrays nor what a valid file always has."""

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
ALIGNMENT = 16
"""Of constants in the file, as the schema forces it on other writers."""

ROOM = 1024
"""An estimate of the bytes that a tensor and its operation take in addition to the content; the builder grows where it is too low."""

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "bfloat16": schema.TensorType.BFLOAT16,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
    "uint8": schema.TensorType.UINT8,
}
OPTIONS = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "REDUCE_MAX": "ReducerOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SPLIT_V": "SplitVOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
}
"""Operation -> the table its settings are in; the others used here have none that matter."""


@dataclass(frozen=True)
class Affine:
    """The affine mapping of integers to reals: real = scale x (integer - zero_point), both [] or [channels] along `axis`."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int = 0


class TfliteModel:
    """One graph of tensors and operations, in the order they run."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]  # the first one is that of tensors without content

    def tensor(self, name: str, shape: Sequence[int], dtype: str, affine: Affine | None = None) -> int:
        """Add a tensor that an operation writes; its index."""
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, np.array(shape, np.int32), TYPES[dtype], 0
        if affine is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.atleast_1d(affine.scale).astype(np.float32)
            made.quantization.zeroPoint = np.atleast_1d(affine.zero_point).astype(np.int64)
            made.quantization.quantizedDimension = affine.axis
        self._tensors.append(made)
        return len(self._tensors) - 1

    def constant(self, name: str, values: np.ndarray, affine: Affine | None = None) -> int:
        """Add a tensor with content; its index."""
        index = self.tensor(name, values.shape, values.dtype.name, affine)
        self._tensors[index].buffer = len(self._buffers)
        self._buffers.append(_Content(values))
        return index

    def operation(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: object) -> None:
        """Add an operation; `options` are those of its table in the schema."""
        made = schema.OperatorT()
        made.opcodeIndex = self._codes.setdefault(kind, len(self._codes))
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if table := OPTIONS.get(kind):
            made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            made.builtinOptions = getattr(schema, f"{table}T")()
            for name, value in options.items():
                setattr(made.builtinOptions, name, value)
        self._operators.append(made)

    def write(self, path: Path, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Write the file; `inputs` and `outputs` map a name to its tensor."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        model = schema.ModelT()
        model.version, model.description = SCHEMA_VERSION, "slimfront"
        model.operatorCodes = [_code(kind) for kind in self._codes]
        model.subgraphs, model.buffers = [graph], self._buffers
        model.signatureDefs = [_signature(inputs, outputs)]
        builder = flatbuffers.Builder(sum(content.room for content in self._buffers[1:]) + ROOM * len(self._tensors))
        builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
        path.write_bytes(builder.Output())


class _Content(schema.BufferT):
    """The bytes of a constant, aligned as the schema wants them, which its generated classes leave out."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self._bytes = values.tobytes()
        self.room = len(self._bytes) + ALIGNMENT

    def Pack(self, builder: flatbuffers.Builder) -> int:
        builder.StartVector(1, len(self._bytes), ALIGNMENT)
        start = builder.head = builder.Head() - len(self._bytes)
        builder.Bytes[start : start + len(self._bytes)] = self._bytes
        content = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, content)
        return schema.BufferEnd(builder)


def _code(kind: str) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = getattr(schema.BuiltinOperator, kind)
    made.deprecatedBuiltinCode = min(made.builtinCode, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    return made


def _signature(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey = "serving_default"
    made.inputs, made.outputs = [], []
    for listed, tensors in ((made.inputs, inputs), (made.outputs, outputs)):
        for name, index in tensors.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            listed.append(entry)
    return made
