"""A candidate as the ONNX file TensorRT builds an engine of, and what the engine's own report says; needs no GPU.

TensorRT's explicit quantization wants Q/DQ pairs of int8 with zero points of 0, for activations as for weights (NVIDIA
TensorRT documentation, "Working with Quantized Types").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ....core.batch import Batch
from ....core.errors import LoweringError
from ....spaces.policies.candidate import Candidate, Quantization, QuantParams
from ..node_names import layer_of
from ..onnx.lowering import lower as lower_to_onnx

PRECISIONS = {
    "int8": "i8", "int4": "i4", "fp8": "f8", "half": "f16", "fp16": "f16", "bf16": "bf16", "bfloat16": "bf16",
    "float": "f32", "fp32": "f32",
}  # fmt: skip
"""How the engine inspector writes types -> our names."""

_TYPE = re.compile(rf"\b({'|'.join(PRECISIONS)})\b", re.IGNORECASE)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def lower(candidate: Candidate, example_input: Batch, batch: int, path: Path) -> Path:
    """Write `candidate` with symmetric int8 grids.

    Raises:
        LoweringError: a grid has its zero elsewhere than in its middle, a table is on integers, or the model cannot be exported.
    """
    if candidate.quantization.embeddings:
        raise LoweringError("TensorRT looks rows up in tables of floats only: leave embedding_bits at 32")
    return lower_to_onnx(replace(candidate, quantization=_signed(candidate.quantization)), example_input, batch, path)


def executed_precisions(report: Mapping[str, Any]) -> dict[str, str]:
    """Layer -> precision it reads its input in, from the engine inspector's JSON at detailed verbosity.

    TensorRT does not report the precision of layers that it compiled into one foreign node; they are left out.
    """
    found: dict[str, str] = {}
    for built in report["Layers"]:
        types = [_TYPE.search(tensor["Format/Datatype"]) for tensor in built.get("Inputs", [])]
        if "ForeignNode" in built["Name"] or not types or types[0] is None:
            continue
        names = _ONNX_LAYER.findall(built.get("Metadata", "")) or built["Name"].split(" + ")
        layers = {layer_of(name.strip()) for name in names} - {None}
        found |= {layer: PRECISIONS[types[0][1].lower()] for layer in layers if layer is not None}
    return found


def _signed(quantization: Quantization) -> Quantization:
    return replace(
        quantization,
        inputs={name: _signed_grid(name, grid) for name, grid in quantization.inputs.items()},
        additions={key: _signed_grid(key[0] or "the model", grid) for key, grid in quantization.additions.items()},
    )


def _signed_grid(name: str, grid: QuantParams) -> QuantParams:
    """A grid with zero in its middle on int8; the middle of 0 .. 255 is 127 or 128, which moves its ends by one step."""
    zero, middle = int(grid.zero_point), (grid.low + grid.high) / 2
    if abs(zero - middle) > 1:
        raise LoweringError(
            f"{name}: TensorRT takes symmetric grids only; set `quantization: {{activations: symmetric}}` in the study file"
        )
    limits = np.iinfo(np.int8)
    full = grid.high - grid.low == limits.max - limits.min
    low, high = (limits.min, limits.max) if full else (grid.low - zero, grid.high - zero)
    return QuantParams(grid.scale, np.zeros((), np.int8), int(low), int(high))
