"""Inputs and outputs of an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from ....core.errors import UserError
from ..base import Signature, TensorInfo

SIZES = "slimfront.sizes"
"""The key of a file's metadata that has the sizes of its dynamic axes in the example, by their names, as JSON."""


def note_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Note the sizes of dynamic axes in the example, which the graph has by name only."""
    model.metadata_props.add(key=SIZES, value=json.dumps(sizes))


def onnx_signature(path: Path) -> Signature:
    """What an ONNX file says of its inputs and outputs."""
    model = onnx.load(path, load_external_data=False)
    noted = next((each.value for each in model.metadata_props if each.key == SIZES), "{}")
    info = partial(_info, json.loads(noted))
    return Signature(tuple(map(info, model.graph.input)), tuple(map(info, model.graph.output)))


def _info(sizes: Mapping[str, int], value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    names = {place: axis.dim_param for place, axis in enumerate(kind.shape.dim) if axis.dim_param in sizes}
    shape = (sizes.get(names.get(place, ""), axis.dim_value) for place, axis in enumerate(kind.shape.dim))
    return TensorInfo(value.name, tuple(shape), dtype, names)


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
