"""From judged points to the figures of the comparison: bounds of drop, hypervolume, times."""

from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np

DROPS = (0.0, 0.5, 1.0, 2.0)
USEFUL = {"drop": 1.0, "speedup": 1.1}
"""A result is useful from so much faster than the default deployment, at no more than so many points of drop."""

Points = Sequence[dict[str, Any]]


def figures(points: Points, timeline: Points) -> dict[str, Any]:
    """Of one contestant.

    Args:
        points: as judged.
        timeline: what a search measured itself, trial by trial; empty for contestants whose points are all there is.
    """
    fastest = {f"fastest_{drop:g}": best(points, drop, "speedup") for drop in DROPS}
    smallest = {f"smallest_{drop:g}": best(points, drop, "size", lowest=True) for drop in DROPS}
    return {**fastest, **smallest, "hypervolume": hypervolume(points), "useful_s": first_useful(timeline or points)}


def best(points: Points, drop: float, key: str, *, lowest: bool = False) -> float | None:
    """The best figure among points within a drop in points of accuracy; None where there are none."""
    within = [point[key] for point in points if point["drop"] <= drop + 1e-9]
    return (min if lowest else max)(within, default=None)


def hypervolume(points: Points) -> float:
    """The volume of drops below two points, and of time and bytes below the default deployment's, as fractions of these."""
    rows = [(max(point["drop"], 0.0) / DROPS[-1], 1 / point["speedup"], point["size"]) for point in points]
    return float(moocore.hypervolume(np.array(rows), ref=[1.0, 1.0, 1.0])) if rows else 0.0


def first_useful(points: Points) -> float | None:
    """Seconds until the first useful result."""
    useful = (p["seconds"] for p in points if p["drop"] <= USEFUL["drop"] and p["speedup"] >= USEFUL["speedup"])
    return min(useful, default=None)
