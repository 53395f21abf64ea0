"""How the integer grids of a model are chosen, in the same way for all of its layers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Calibration = Literal["mse", "min_max", "percentile", "entropy"]
Weights = Literal["channel", "tensor"]
Activations = Literal["affine", "symmetric", "signed"]
GroupGrids = Literal["symmetric", "affine"]
CHOICES: dict[str, tuple[str, ...]] = {
    "calibration": get_args(Calibration),
    "weights": get_args(Weights),
    "activations": get_args(Activations),
    "group_grids": get_args(GroupGrids),
}
"""What each decision of a `Scheme` may be, the default first."""


@dataclass(frozen=True)
class Scheme:
    """The rules grids follow.

    Attributes:
        calibration: how the range of an activation is read from the calibration split; see `compression.quantization.observers`.
        weights: one scale per output "channel", or per "tensor".
        activations: "affine" grids use all integers for the range seen; "symmetric" ones have zero in their middle; "signed"
            takes the first of unsigned from zero, symmetric and affine that wastes at most a quarter of the integers on values that were not
            seen, since a zero point that is neither the lowest nor the middle integer costs time (Nagel et al. 2021,
            arXiv:2106.08295, section 2.2).
        group_grids: of weights whose inputs have scales by groups: "symmetric" ones have zero in their middle, "affine" ones use
            all integers for the range of each group.

    Raises:
        ValueError: a decision is none of `CHOICES`.
    """

    calibration: Calibration = "mse"
    weights: Weights = "channel"
    activations: Activations = "affine"
    group_grids: GroupGrids = "symmetric"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    def reduced(self, quantized: bool, grouped: bool) -> Scheme:
        """These rules without what decides nothing: where no layer is `quantized`, or no weight has scales by groups."""
        if not quantized:
            return Scheme()
        return self if grouped else replace(self, group_grids=Scheme.group_grids)

    def changes(self) -> dict[str, Any]:
        """The decisions that are not the default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
