"""How the matrices of a recurrent layer are stored and multiplied: one decision for all of a layer's."""

from __future__ import annotations

from .float_precision import FLOAT32
from .layer_policy import FULL_PRECISION

INT8, DYNAMIC_INT8 = "int8", "dynamic"
RECURRENT_WEIGHTS = (FLOAT32, INT8, DYNAMIC_INT8)
"""In float; in 8 bits, one scale per row, multiplied in float; or in 8 bits with what they multiply quantized at run time, the range
of the whole sequence and of each step's state (ONNX Runtime's DynamicQuantizeLSTM)."""

INT8_BITS = 8


def weight_bits_of(choice: str) -> int:
    """Bits of the matrices."""
    return FULL_PRECISION if choice == FLOAT32 else INT8_BITS


def read_bits_of(choice: str) -> int:
    """Bits of what the matrices are multiplied with."""
    return INT8_BITS if choice == DYNAMIC_INT8 else FULL_PRECISION
