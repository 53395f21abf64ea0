"""The Pareto front of a study's points, dominance under noise, and the hypervolume that tracks a search.

All functions are pure and take objectives in their own direction; minimisation is a matter of the inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import moocore
import numpy as np

from ...core.measurement import Measurement
from ...core.metrics import FRACTION, METRICS, OF_QUALITY, Direction, Quality
from ..study_file.constraint import Constraint


class MeasuredTrial(Protocol):
    """The source of a point; `records.TrialRecord` is one."""

    @property
    def number(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def measurements(self) -> Mapping[str, Measurement]: ...


@dataclass(frozen=True)
class Objective:
    """A metric the front trades against others.

    Attributes:
        margin: as `Metric.margin`.
    """

    name: str
    unit: str
    direction: Direction
    margin: float | None = None

    @classmethod
    def of(cls, name: str, quality: Quality = FRACTION) -> Objective:
        """The objective of a metric in `metrics.METRICS`, in a study whose accuracy is `quality`."""
        metric = METRICS[name]
        if name not in OF_QUALITY:
            return cls(name, metric.unit, metric.direction, metric.margin)
        is_reversed = metric.direction == "maximize" and not quality.higher_is_better
        return cls(name, quality.unit, "minimize" if is_reversed else metric.direction, quality.margin)

    @property
    def sign(self) -> int:
        """Factor that turns a value into one to minimise."""
        return 1 if self.direction == "minimize" else -1


@dataclass(frozen=True)
class Point:
    """A trial in objective space.

    Attributes:
        values: one number per objective; `lows` and `highs` bound its 95 % interval.
        measurements: everything measured of the trial, by name.

    Raises:
        ValueError: a number is NaN, which neither dominates nor is dominated, or the three differ in length.
    """

    trial: int
    policy_digest: str
    values: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    measurements: Mapping[str, Measurement] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if any(map(math.isnan, (*self.values, *self.lows, *self.highs))):
            raise ValueError(f"trial {self.trial} has a NaN among its objectives")
        if not len(self.values) == len(self.lows) == len(self.highs):
            raise ValueError(f"trial {self.trial} has values, lows and highs of different lengths")

    @classmethod
    def of(cls, trial: MeasuredTrial, objectives: Sequence[Objective]) -> Point:
        """The point of a trial that has been measured on every objective.

        Raises:
            ValueError: one objective was not measured.
        """
        missing = [objective.name for objective in objectives if objective.name not in trial.measurements]
        if missing:
            raise ValueError(f"trial {trial.number} has no {missing[0]}")
        measured = [trial.measurements[objective.name] for objective in objectives]
        return cls(
            trial.number,
            trial.digest,
            tuple(m.value for m in measured),
            tuple(m.low for m in measured),
            tuple(m.high for m in measured),
            trial.measurements,
        )


def minimised(points: Sequence[Point], objectives: Sequence[Objective]) -> np.ndarray:
    """The points' values as an array [points, objectives] in which less is better.

    Raises:
        ValueError: a point's number of values is not that of the objectives.
    """
    if any(len(point.values) != len(objectives) for point in points):
        raise ValueError(f"every point needs {len(objectives)} values")
    signs = [objective.sign for objective in objectives]
    return np.array([point.values for point in points], dtype=float).reshape(-1, len(objectives)) * signs


def pareto_front(points: Iterable[Point], objectives: Sequence[Objective]) -> list[Point]:
    """The points whose values no other point dominates, by trial number.

    This is strict non-domination of the measured values (no worse in every objective, better in one), noise or no
    noise, so that no listed point is dominated by another; of points with equal values the earliest trial is listed.
    `dominates_beyond_noise` is the notion that respects the intervals, but it is not transitive and leaves no
    well-defined front. Computed by moocore after Kung, Luccio & Preparata 1975 (J. ACM 22:469).
    """
    ordered = sorted(points, key=lambda point: point.trial)
    if not ordered:
        return []
    kept = moocore.is_nondominated(minimised(ordered, objectives))
    return [point for point, keep in zip(ordered, kept, strict=True) if keep]


def dominates(a: Point, b: Point, objectives: Sequence[Objective]) -> bool:
    """Whether `a` is no worse than `b` in every objective and better in one, on the values alone."""
    first, second = minimised([a, b], objectives)
    return bool((first <= second).all() and (first < second).any())


def dominates_beyond_noise(a: Point, b: Point, objectives: Sequence[Objective]) -> bool:
    """Whether `a` dominates `b` where a difference inside the noise is no difference.

    Values differ only where their intervals do not touch (Teich 2001, EMO, LNCS 1993:314). `a` dominates
    when `b` is better in no objective and `a` in at least one.
    """
    return bool(better_somewhere([a], [b], objectives)) and not better_somewhere([b], [a], objectives)


def better_somewhere(some: Sequence[Point], others: Sequence[Point], objectives: Sequence[Objective]) -> np.ndarray:
    """An array [some, others]: whether all of the one's interval is better than all of the other's in any objective."""
    signs = [objective.sign for objective in objectives]
    worst = np.maximum(*(_signed(bounds, signs) for bounds in ([p.lows for p in some], [p.highs for p in some])))
    best = np.minimum(*(_signed(bounds, signs) for bounds in ([p.lows for p in others], [p.highs for p in others])))
    return np.any(worst[:, None] < best[None], axis=-1)


def _signed(values: Sequence[tuple[float, ...]], signs: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=float).reshape(-1, len(signs)) * signs


def reference_point(
    baseline: Mapping[str, float], objectives: Sequence[Objective], constraints: Iterable[Constraint] = ()
) -> tuple[float, ...]:
    """The worst corner that hypervolume is measured from, fixed by the study's baseline and constraints.

    A maximised metric starts at 0, a minimised one at 1.1 x the uncompressed model's value. Where that is 0, as an accuracy
    drop is, it starts at its tightest positive upper bound, or at the metric's `margin` without one.

    Args:
        baseline: metric -> value of the uncompressed model, of all minimised objectives without a margin.

    Raises:
        ValueError: the baseline lacks an objective.
    """
    bounds = [constraint for constraint in constraints if constraint.op in ("<=", "<") and constraint.bound > 0]
    return tuple(_worst(objective, baseline, bounds) for objective in objectives)


def _worst(objective: Objective, baseline: Mapping[str, float], upper: Iterable[Constraint]) -> float:
    name, margin = objective.name, objective.margin
    if objective.direction == "maximize":
        return 0.0
    if margin is not None:
        return min((constraint.bound for constraint in upper if constraint.metric == name), default=margin)
    if name not in baseline:
        raise ValueError(f"the baseline has no {name}")
    return 1.1 * baseline[name]


def hypervolume(points: Sequence[Point], objectives: Sequence[Objective], reference: Sequence[float]) -> float:
    """Volume between the points and the reference, in the product of the objectives' units; 0 without points.

    A point that is not better than the reference in every objective adds nothing. Zitzler & Thiele 1998
    (PPSN V:292); computed by moocore.
    """
    if not points:
        return 0.0
    signs = [objective.sign for objective in objectives]
    return float(moocore.hypervolume(minimised(points, objectives), ref=np.array(reference, dtype=float) * signs))
