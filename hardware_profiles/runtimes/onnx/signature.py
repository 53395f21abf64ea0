"""Inputs and outputs of an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from ....core.errors import UserError
from ..base import Signature, TensorInfo


def onnx_signature(path: Path) -> Signature:
    """What an ONNX file says of its inputs and outputs."""
    graph = onnx.load(path, load_external_data=False).graph
    return Signature(tuple(map(_info, graph.input)), tuple(map(_info, graph.output)))


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorInfo(value.name, tuple(axis.dim_value for axis in kind.shape.dim), dtype)


def refuse_external_data(path: Path) -> None:
    """Refuse a model that reads its weights from other files, wherever its file says that they are.

    Raises:
        UserError: it does, or is not an ONNX file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{path} is not an ONNX file: {error}") from error
    if _reads_elsewhere(model):
        raise UserError(f"{path} reads weights from other files, and is to hold its own")


def _reads_elsewhere(message: Message) -> bool:
    if isinstance(message, onnx.TensorProto):
        return message.data_location == onnx.TensorProto.EXTERNAL or bool(message.external_data)
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            parts = value if isinstance(value, Sequence) else [value]
            if any(_reads_elsewhere(part) for part in parts):
                return True
    return False
