"""A shape of inputs that latency is timed at: sizes of the axes that a workload names as dynamic, and how much they count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.validation import MAX_COUNT

MOST_LETTERS = 48
"""The most characters of a shape's name, which is part of the names of measurements."""


class Shape(BaseModel):
    """Sizes by the names of dynamic axes, as in `{sequence: 128, weight: 3}`; axes that are left out have the example's size.

    Attributes:
        weight: what the latency at this shape counts in the mean over all shapes.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Annotated[int, Field(ge=1, le=MAX_COUNT)]] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]  # as pydantic's guide has it

    weight: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 1

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.sizes:
            raise ValueError("names no dynamic axis; a shape is such as {sequence: 128, weight: 3}")
        if len(self.name) > MOST_LETTERS:
            raise ValueError(
                f"{self.name} is longer than the {MOST_LETTERS} characters that its measurements' names have"
            )
        return self

    @property
    def sizes(self) -> Mapping[str, int]:
        """Name of an axis -> its size, in the order of the names."""
        return dict(sorted(self.__pydantic_extra__.items()))

    @property
    def name(self) -> str:
        """How measurements call it, as in "sequence=128"."""
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items())


def distinct_shapes(shapes: Sequence[Shape] | None) -> Sequence[Shape] | None:
    """The shapes themselves, which must differ.

    Raises:
        ValueError: one is there twice.
    """
    sizes = [dict(shape.sizes) for shape in shapes or ()]
    for index, shape in enumerate(shapes or ()):
        if sizes[index] in sizes[:index]:
            raise ValueError(f"{shape.name} is there twice; a weight says how much it counts")
    return shapes


def shapes_problem(shapes: Sequence[Shape], axes: Sequence[str]) -> tuple[str, str] | None:
    """Where under "shapes", and what, is wrong with shapes of inputs whose dynamic axes have these names; None where nothing is."""
    if not axes:
        return "", "needs dynamic axes, and the workload names none in dynamic_axes"
    for index, shape in enumerate(shapes):
        if unknown := [axis for axis in shape.sizes if axis not in axes]:
            return f".{index}.{unknown[0]}", f"no dynamic axis of the workload has this name; it has {', '.join(axes)}"
    return None
