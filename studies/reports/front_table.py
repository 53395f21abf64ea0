"""A front as a JSON document and as a table, and all trials as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...core.measurement import Measurement
from ..analysis.front import Objective, Point
from ..analysis.significance import beaten, is_lucky
from ..store.records import TrialRecord

if TYPE_CHECKING:
    import pandas


def front_document(
    study: str, objectives: Sequence[Objective], baseline: Mapping[str, Measurement], points: Sequence[Point]
) -> dict[str, Any]:
    """The front as plain JSON values, best first by the first objective::

    {"study", "objectives": [{"name", "unit", "direction"}],
     "baseline": {"measurements": {name: {"value", "low", "high", "unit"}}},
     "points": [{"trial", "policy_digest", "values": {objective: number},
                 "measurements": {name: {"value", "low", "high", "unit"}},
                 "lucky": bool, or null before the test split is scored, "beaten_beyond_noise_by": [trial]}]}
    """
    better = beaten(points, objectives)
    return {
        "study": study,
        "objectives": [{"name": o.name, "unit": o.unit, "direction": o.direction} for o in objectives],
        "baseline": {"measurements": _measurements(baseline)},
        "points": [_point(point, objectives, better[point.trial]) for point in _best_first(points, objectives)],
    }


def front_frame(objectives: Sequence[Objective], points: Sequence[Point]) -> pandas.DataFrame:
    """The front as a table, a row per point, best first by the first objective.

    Columns: trial, policy_digest, then NAME, NAME_low and NAME_high of every measurement, objectives first.
    """
    import pandas

    names = [objective.name for objective in objectives]
    names += sorted({name for point in points for name in point.measurements} - set(names))
    columns = [f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high")]
    rows = [_row(point) for point in _best_first(points, objectives)]
    return pandas.DataFrame(rows, columns=["trial", "policy_digest", *columns])


def trials_frame(trials: Sequence[TrialRecord]) -> pandas.DataFrame:
    """Trials as a table, a row per trial, by number.

    Columns: trial, state, reason, retry_of, started, finished, policy_digest, then NAME, NAME_low and NAME_high of every
    measurement.
    """
    import pandas

    names = sorted({name for trial in trials for name in trial.measurements})
    about = ["trial", "state", "reason", "retry_of", "started", "finished", "policy_digest"]
    columns = [*about, *(f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high"))]
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.value,
            **{name: getattr(trial, name) for name in about[2:-1]},
            "policy_digest": trial.digest,
            **_figures(trial.measurements),
        }
        for trial in trials
    ]
    return pandas.DataFrame(rows, columns=columns)


def _best_first(points: Sequence[Point], objectives: Sequence[Objective]) -> list[Point]:
    return sorted(points, key=lambda point: (objectives[0].sign * point.values[0], point.trial))


def _measurements(measurements: Mapping[str, Measurement]) -> dict[str, dict[str, Any]]:
    return {
        name: {"value": m.value, "low": m.low, "high": m.high, "unit": m.unit}
        for name, m in sorted(measurements.items())
    }


def _point(point: Point, objectives: Sequence[Objective], better: list[int]) -> dict[str, Any]:
    return {
        "trial": point.trial,
        "policy_digest": point.policy_digest,
        "values": {objective.name: value for objective, value in zip(objectives, point.values, strict=True)},
        "measurements": _measurements(point.measurements),
        "lucky": is_lucky(point.measurements),
        "beaten_beyond_noise_by": better,
    }


def _row(point: Point) -> dict[str, Any]:
    return {"trial": point.trial, "policy_digest": point.policy_digest, **_figures(point.measurements)}


def _figures(measurements: Mapping[str, Measurement]) -> dict[str, float]:
    """Column -> number, of every measurement's value and bounds."""
    return {
        f"{name}{suffix}": value
        for name, m in measurements.items()
        for suffix, value in (("", m.value), ("_low", m.low), ("_high", m.high))
    }
