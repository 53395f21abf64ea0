"""How the integer grids of a model are chosen, in the same way for all of its layers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Calibration = Literal["mse", "min_max", "percentile", "entropy"]
Weights = Literal["channel", "tensor"]
Activations = Literal["affine", "symmetric"]
CHOICES: dict[str, tuple[str, ...]] = {
    "calibration": get_args(Calibration),
    "weights": get_args(Weights),
    "activations": get_args(Activations),
}
"""What each decision of a `Scheme` may be, the default first."""


@dataclass(frozen=True)
class Scheme:
    """The rules grids follow.

    Attributes:
        calibration: how the range of an activation is read from the calibration split; see `compression.observers`.
        weights: one scale per output "channel", or per "tensor".
        activations: "affine" grids use all integers for the range seen; "symmetric" ones have zero in their middle.

    Raises:
        ValueError: a decision is none of `CHOICES`.
    """

    calibration: Calibration = "mse"
    weights: Weights = "channel"
    activations: Activations = "affine"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    def changes(self) -> dict[str, Any]:
        """The decisions that are not the default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
