"""The precision in which everything of a model is computed that no policy puts on fewer bits."""

from __future__ import annotations

from typing import Literal, get_args

FloatPrecision = Literal["float32", "default", "bfloat16", "float16"]
"""A type of floats, or "default": what a runtime takes by itself, where nobody asks for one."""

FLOAT32: FloatPrecision = "float32"
DEFAULT: FloatPrecision = "default"
BFLOAT16: FloatPrecision = "bfloat16"
FLOAT16: FloatPrecision = "float16"

FLOAT_PRECISIONS: tuple[FloatPrecision, ...] = get_args(FloatPrecision)
