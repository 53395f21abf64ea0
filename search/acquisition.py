"""Expected hypervolume improvement of candidates whose objectives are known as draws (Emmerich, Giannakoglou & Naujoks 2006)."""

from __future__ import annotations

import numpy as np
from optuna._hypervolume.box_decomposition import get_non_dominated_box_bounds
from scipy.stats import norm, qmc

MOST_CELLS = 6_000_000
"""Box-draw-candidate triples that are compared at once; more are taken in chunks of candidates."""


def normal_draws(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Standard normal draws [count, dimensions], quasi-random, the same for all candidates; a power of two is best."""
    uniform = qmc.Sobol(dimensions, seed=seed).random(count)  # type: ignore[call-arg]  # called rng from SciPy 1.15 on
    return norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6))


def expected_improvement(draws: np.ndarray, front: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean gain of hypervolume of each candidate, shape [candidates].

    Args:
        draws: shape [draws, candidates, objectives], less is better; NaN where a draw breaks a constraint.
        front: shape [points, objectives], none worse than the reference.
        reference: worst corner, shape [objectives].
    """
    lows, highs = _free_boxes(front, reference)
    count, candidates, objectives = draws.shape
    chunk = max(1, MOST_CELLS // (count * len(lows) * objectives))
    gains = [_gains(draws[:, start : start + chunk], lows, highs).mean(axis=0) for start in range(0, candidates, chunk)]
    return np.concatenate(gains)


def _free_boxes(front: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of disjoint boxes that fill what no point of the front dominates, below the reference."""
    if not len(front):
        return np.full((1, len(reference)), -np.inf), reference[None]
    lows, highs = get_non_dominated_box_bounds(front, reference)
    return lows, np.minimum(highs, reference)


def _gains(draws: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """Volume that each draw [draws, candidates, objectives] dominates of the boxes, shape [draws, candidates]."""
    volume = np.ones((*draws.shape[:2], len(lows)))
    for objective in range(draws.shape[2]):
        points = draws[:, :, None, objective]
        volume *= np.maximum(highs[:, objective] - np.maximum(lows[:, objective], points), 0.0)
    return np.nan_to_num(volume).sum(axis=2)
