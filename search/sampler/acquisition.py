"""Expected hypervolume improvement of candidates whose objectives are known as draws (Emmerich, Giannakoglou & Naujoks 2006)."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from .surrogate.surrogate import History

MOST_CELLS = 6_000_000
"""At most this many triples of box, draw and candidate are held in memory; more are taken in chunks of candidates."""

DRAWS = {2: 64, 3: 32, 4: 16}
"""The improvement is averaged over this many draws, by the number of objectives."""

SHORTLIST = {2: 900, 3: 300, 4: 100}
"""The improvement of at most this many candidates is averaged, by the number of objectives; one optimistic draw selects them."""


def normal_draws(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Standard normal draws [count, dimensions], quasi-random, the same for all candidates; a power of two is best."""
    from scipy.stats import qmc  # only here: importing it takes a second

    uniform = qmc.Sobol(dimensions, seed=seed).random(count)  # type: ignore[call-arg]  # `rng`, new in SciPy 1.15, draws others
    return ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))


def expected_improvement(draws: np.ndarray, front: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean gain of hypervolume of each candidate, shape [candidates].

    Args:
        draws: shape [draws, candidates, objectives], less is better; infinite where a draw breaks a constraint.
        front: shape [points, objectives], none worse than the reference.
        reference: worst corner, shape [objectives].
    """
    lows, highs = free_boxes(front, reference)
    count, candidates, objectives = draws.shape
    chunk = max(1, MOST_CELLS // (count * len(lows) * objectives))
    gains = [_gains(draws[:, start : start + chunk], lows, highs).mean(axis=0) for start in range(0, candidates, chunk)]
    return np.concatenate(gains)


def ranked(draws: np.ndarray, front: np.ndarray, reference: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Places of candidates by expected improvement, the greatest first; of many only those on the shortlist.

    Args:
        draws: as for `expected_improvement`.
        odds: probability [candidates] that a candidate comes to its end; one that does not improves nothing.
    """
    shortlist, objectives = np.arange(draws.shape[1]), draws.shape[2]
    if len(shortlist) > SHORTLIST[objectives]:
        optimistic = np.sort(draws, axis=0)[None, len(draws) // 6]  # a standard deviation better than the median
        gains = expected_improvement(optimistic, front, reference) * odds
        shortlist = np.argsort(-gains, kind="stable")[: SHORTLIST[objectives]]
        draws, odds = draws[:, shortlist], odds[shortlist]
    gains = expected_improvement(draws, front, reference) * odds
    return shortlist[np.argsort(-gains, kind="stable")]


def front_rows(history: History, reference: np.ndarray) -> np.ndarray:
    """Rows of the trials that are better than the reference, violate nothing and are not dominated by one another."""
    fine = (history.values < reference).all(axis=1)
    if history.violations:
        fine &= ~(np.stack(list(history.violations.values()), axis=1) > 0).any(axis=1)
    values = history.values[fine]
    dominated = [bool(((values <= v).all(axis=1) & (values < v).any(axis=1)).any()) for v in values]
    return np.flatnonzero(fine)[~np.array(dominated, dtype=bool)]


def free_boxes(front: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of disjoint boxes that fill what no point of the front dominates, below the reference.

    Every local upper bound of the front is the best corner that a new point may have to be worse than; what they dominate,
    seen from minus infinity, is what is still free (Lacour, Klamroth & Fonseca 2017, doi 10.1016/j.cor.2016.06.021).
    """
    bounds, _ = _local_upper_bounds(front, reference)
    if len(reference) == 2:  # a staircase, cheaper
        bounds = bounds[np.argsort(bounds[:, 0])]
        lefts = np.concatenate([[-np.inf], bounds[:-1, 0]])
        return np.stack([lefts, np.full(len(bounds), -np.inf)], axis=1), bounds
    infinity = np.full(len(reference), np.inf)
    uppers, defining = _local_upper_bounds(-bounds, infinity)
    lows = [defining[:, 0, 0], *(defining[:, :j, j].max(axis=1) for j in range(1, len(reference)))]
    highs = np.concatenate([np.full((len(uppers), 1), np.inf), uppers[:, 1:]], axis=1)
    mirrored = -highs, -np.stack(lows, axis=1)
    filled = (mirrored[0] < mirrored[1]).all(axis=1)
    return mirrored[0][filled], mirrored[1][filled]


def _local_upper_bounds(points: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners [bounds, objectives] below which no point lies, and the points [bounds, objectives, objectives] they rest on.

    Algorithm 5 of Klamroth, Lacour & Vanderpooten 2015, doi 10.1016/j.ejor.2015.03.031.
    """
    size = len(reference)
    bounds = reference[None].astype(float)
    defining = np.where(np.eye(size, dtype=bool), bounds, -np.inf)[None]
    for point in points:
        above = (point < bounds).all(axis=1)
        if not above.any():
            continue
        parts, rests = [bounds[~above]], [defining[~above]]
        for axis in range(size):
            others = np.delete(defining[above][:, :, axis], axis, axis=1)
            kept = (point[axis] >= others).all(axis=1)
            lowered, resting = bounds[above][kept], defining[above][kept]
            lowered[:, axis], resting[:, axis] = point[axis], point
            parts.append(lowered)
            rests.append(resting)
        bounds, defining = np.concatenate(parts), np.concatenate(rests)
    return bounds, defining


def _gains(draws: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """Volume that each draw [draws, candidates, objectives] dominates of the boxes, shape [draws, candidates]."""
    volume = np.ones((*draws.shape[:2], len(lows)))
    for objective in range(draws.shape[2]):
        points = draws[:, :, None, objective]
        volume *= np.maximum(highs[:, objective] - np.maximum(lows[:, objective], points), 0.0)
    return volume.sum(axis=2)
