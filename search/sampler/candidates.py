"""Policies worth asking the surrogate about: minimisers of damage against cost, and neighbours of the front."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TRADE_OFFS = np.geomspace(0.05, 50.0, 20)
"""Weights of log cost against log damage; they span from what hardly compresses to what hardly computes."""

MUTANTS = 400
CROSSED = 200
SWEEPS = 2

Score = Callable[[np.ndarray, int], np.ndarray]
"""(codes [chains, knobs], knob) -> what each chain minimises, for each of the knob's choices [chains, choices]."""


def descend(start: np.ndarray, sizes: np.ndarray, score: Score, generator: np.random.Generator) -> np.ndarray:
    """Coordinate descent of many chains at once.

    Args:
        start: codes the chains begin with, shape [chains, knobs].
        sizes: number of choices of each knob.

    Returns:
        every state a sweep ended in, shape [chains x sweeps, knobs].
    """
    codes, visited = start.copy(), []
    for _ in range(SWEEPS):
        for knob in generator.permutation(len(sizes)):
            codes[:, knob] = score(codes, int(knob)).argmin(axis=1)
        visited.append(codes.copy())
    return np.concatenate(visited)


def mutate(parents: np.ndarray, sizes: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` copies of random parents [n, knobs] with one to three knobs drawn anew."""
    children = parents[generator.integers(len(parents), size=count)].copy()
    knobs = generator.integers(len(sizes), size=(count, 3))
    changed = np.arange(3) < generator.integers(1, 4, size=(count, 1))
    rows = np.repeat(np.arange(count)[:, None], 3, axis=1)[changed]
    children[rows, knobs[changed]] = generator.integers(sizes[knobs[changed]])
    return children


def cross(parents: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` children, each knob from either of two random parents [n, knobs]."""
    first, second = (parents[generator.integers(len(parents), size=count)] for _ in range(2))
    return np.where(generator.random(first.shape) < 0.5, first, second)


def distinct(codes: np.ndarray, keys: Callable[[np.ndarray], list[bytes]], seen: set[bytes]) -> np.ndarray:
    """Rows whose key is new, each once, in their order."""
    first = {key: index for index, key in reversed(list(enumerate(keys(codes)))) if key not in seen}
    return codes[sorted(first.values())]
