"""The precision in which everything of a model is computed that no policy puts on fewer bits."""

from __future__ import annotations

from typing import Literal, get_args

FloatPrecision = Literal["float32", "default", "bfloat16", "float16"]
"""A type of floats, or "default": what a runtime takes by itself, where nobody asks for one."""

FloatType = Literal["float32", "tfloat32", "bfloat16", "float16"]
"""What is computed with; NVIDIA GPUs can round float32 to tfloat32 before they multiply."""

FLOAT32: Literal["float32"] = "float32"
DEFAULT: Literal["default"] = "default"
TFLOAT32: Literal["tfloat32"] = "tfloat32"
BFLOAT16: Literal["bfloat16"] = "bfloat16"
FLOAT16: Literal["float16"] = "float16"

FLOAT_PRECISIONS: tuple[FloatPrecision, ...] = get_args(FloatPrecision)
