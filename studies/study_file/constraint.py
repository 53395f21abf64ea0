"""A bound on a metric, written as "accuracy_drop <= 0.05"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from ...core.validation import suggestion

Operator = Literal["<=", ">=", "<", ">"]

ROUNDING = 1e-12
"""A value this near its bound, relative to the bound and at least to 1, is at the bound: metrics are differences of numbers
near 1, which floats round by some 1e-16."""

_FORM = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric.

    Attributes:
        metric: a key of `metrics.METRICS`.
        op: how a value must compare with `bound`.
        bound: in the metric's unit.
    """

    metric: str
    op: Operator
    bound: float

    @classmethod
    def parse(cls, text: object, known: frozenset[str]) -> Constraint:
        """The constraint that "NAME OP NUMBER" describes, its name one of `known`.

        Raises:
            ValueError: another form, an unknown name, or a bound that is not a finite number.
        """
        form = _FORM.fullmatch(text) if isinstance(text, str) else None
        if form is None:
            raise ValueError(f"{text!r} is not NAME OP NUMBER with OP one of {', '.join(get_args(Operator))}")
        metric, op, number = form.groups()
        if metric not in known:
            raise ValueError(f"{metric!r} cannot be constrained; {suggestion(metric, known)}")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            raise ValueError(f"{number!r} in {text!r} is not a finite number")
        return cls(metric, cast(Operator, op), bound)

    def violation(self, value: float) -> float:
        """How far `value` lies beyond the bound, in the metric's own unit; satisfied when <= 0.

        At the bound itself, to rounding, a strict constraint is violated by the smallest number that says so.

        Raises:
            ValueError: `value` is NaN, which no bound can judge.
        """
        if math.isnan(value):
            raise ValueError(f"{self.metric} is NaN")
        excess = value - self.bound if self.op in ("<=", "<") else self.bound - value
        if abs(excess) > ROUNDING * max(1.0, abs(self.bound)):
            return excess
        return math.ulp(self.bound) if self.op in ("<", ">") else 0.0

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {repr(self.bound).removesuffix('.0')}"
