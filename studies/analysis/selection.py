"""One point of a front, by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ...core.errors import UserError
from ...core.measurement import Measurement
from ...core.validation import suggestion
from .front import Objective, Point, minimised

_BEST_OF = {"fastest": "latency_ms", "smallest": "artifact_bytes", "most-accurate": "accuracy_drop"}

RULES = ("knee", *_BEST_OF)
"""The rules that `pick` accepts."""


def pick(
    points: Sequence[Point],
    objectives: Sequence[Objective],
    rule: str,
    reference: Mapping[str, Measurement] = MappingProxyType({}),
) -> Point:
    """The point of a front that a rule picks.

    - "knee": the point farthest below the plane through the extremes of the front and the reference, each objective
      scaled to [0, 1] between them: where giving up a little of one objective stops buying much of another (Das 1999,
      Structural Optimization 18:107; Branke et al. 2004, PPSN VIII:722). Without the reference, points that all cost
      nearly the same would be ranked by differences that no user gains from; for the same reason no objective's scale
      is shorter than the uncertainty of a point.
    - "fastest", "smallest", "most-accurate": the least `latency_ms`, `artifact_bytes` or `accuracy_drop`, whether or not
      that is an objective; of equals the one nearer to the knee.

    The earliest trial wins where the rule leaves a tie.

    Args:
        reference: the uncompressed model's measurements, which the user has without any point.

    Raises:
        UserError: an unknown rule, an empty front, or a point that was not measured for the rule.
    """
    if rule not in RULES:
        raise UserError(f"no rule {rule!r} to pick by; {suggestion(rule, RULES)}")
    if not points:
        raise UserError("the front is empty: no trial has met the constraints yet")
    heights = _heights(minimised(points, objectives), _costs_of(reference, objectives), _noise(points))
    costs = [0.0] * len(points) if rule == "knee" else [_cost(point, _BEST_OF[rule]) for point in points]
    best = min(range(len(points)), key=lambda i: (costs[i], heights[i], points[i].trial))
    return points[best]


def _costs_of(reference: Mapping[str, Measurement], objectives: Sequence[Objective]) -> np.ndarray:
    """The reference's values [objectives] in which less is better; NaN where it has none."""
    return np.array([
        objective.sign * reference[objective.name].value if objective.name in reference else np.nan
        for objective in objectives
    ])  # fmt: skip


def _noise(points: Sequence[Point]) -> np.ndarray:
    """The widest half of a 95 % interval among the points, of each objective [objectives]."""
    return np.max([np.subtract(point.highs, point.lows) / 2 for point in points], axis=0)


def _heights(values: np.ndarray, reference: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Signed distance [n] of points [n, objectives], up to a factor, above the plane sum(scaled) = 1.

    With two objectives that plane is the line through the extremes of the front and the reference; with more it is the
    one through the unit points of what is scaled, as the plane through the extremes need not exist. Rounded, so that
    ties are ties.
    """
    low = np.fmin(values.min(axis=0), reference)
    span = np.maximum(np.fmax(values.max(axis=0), reference) - low, noise)
    scaled = (values - low) / np.where(span > 0, span, 1)
    return np.round(scaled.sum(axis=1) - 1, 12)


def _cost(point: Point, name: str) -> float:
    if name not in point.measurements:
        raise UserError(f"trial {point.trial} has no {name} to pick by")
    return Objective.of(name).sign * point.measurements[name].value
