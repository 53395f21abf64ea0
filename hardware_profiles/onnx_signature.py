"""What goes into an ONNX file and what comes out of it."""

from __future__ import annotations

from pathlib import Path

import onnx

from .runtime import TensorInfo


def onnx_signature(path: Path) -> tuple[TensorInfo, TensorInfo]:
    """The first input and the first output."""
    graph = onnx.load(path, load_external_data=False).graph
    return _info(graph.input[0]), _info(graph.output[0])


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorInfo(value.name, tuple(axis.dim_value for axis in kind.shape.dim), dtype)
