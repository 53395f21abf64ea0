"""A measured number."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .metrics import METRICS

PREDICTED = "predicted"
"""What the method of a predicted number begins with."""


@dataclass(frozen=True)
class Measurement:
    """One measured number; never a bare float.

    Attributes:
        name: a key of `METRICS`.
        value: the point estimate, in `unit`.
        low, high: bounds of the 95 % interval; both equal to `value` where the number is exact.
        unit: the unit `value`, `low` and `high` share.
        n: how many observations it is computed from (samples, timing pairs; 1 for a count).
        method: how it was obtained, in a few words, e.g. "wilson", "paired-median", "fvcore".
        noisy: the interval stayed wider than the protocol asks for.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    n: int = 1
    method: str = "exact"
    noisy: bool = False

    @classmethod
    def exact(cls, name: str, value: float, method: str) -> Measurement:
        """A number without spread, such as a count, with the unit of `METRICS[name]`."""
        return cls(name, value, value, value, METRICS[name].unit, 1, method)

    @property
    def is_predicted(self) -> bool:
        """Whether the number was predicted for a machine that was not there, and not measured."""
        return self.method.startswith(PREDICTED)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)
