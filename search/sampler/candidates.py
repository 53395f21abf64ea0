"""Policies worth asking the surrogate about: minimisers of damage against cost, and neighbours of the front."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .dimensions import offered_choices
from .surrogate.surrogate import Surrogate

TRADE_OFFS = np.geomspace(0.05, 50.0, 20)
"""Each chain weights log cost against log damage by one of these, from hardly any compression to hardly any computation."""

PERTURBED = 3
"""Chains descend under this many damage models: the likeliest, and others that agree with the trials."""

MUTANTS = 400
"""This many candidates are members of the front with one to three knobs drawn anew."""

CROSSED = 200
"""This many candidates mix two members of the front."""

SWEEPS = 2
"""The coordinate descent passes over all knobs this many times."""

Score = Callable[[np.ndarray, int], np.ndarray]
"""(codes [chains, knobs], knob) -> what each chain minimises, for each of the knob's choices [chains, choices]."""


def candidates_of(surrogate: Surrogate, parents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Codes [n, knobs]: minimisers of damage against cost at many trade-offs, and variations of the parents [any, knobs]."""
    sizes = np.array([len(choices) for choices in offered_choices(surrogate.dimensions).values()])
    chains = len(TRADE_OFFS) * PERTURBED
    score = _weighted_score(surrogate, sizes, generator)
    start = parents[generator.integers(len(parents), size=chains)]
    return np.concatenate([
        descend(start, sizes, score, generator),
        mutate(parents, sizes, MUTANTS, generator),
        cross(parents, CROSSED, generator),
    ])  # fmt: skip


def _weighted_score(surrogate: Surrogate, sizes: np.ndarray, generator: np.random.Generator) -> Score:
    """Log damage and weighted log costs of chains, each of its own trade-off, and a third of them under each damage model."""
    roles, chains = surrogate.roles, len(TRADE_OFFS) * PERTURBED
    shifts = surrogate.shifts(PERTURBED, generator)
    shifts[0] = 0
    model = np.repeat(np.arange(PERTURBED), len(TRADE_OFFS))
    shares = generator.dirichlet(np.ones(len(roles)), chains)
    shares /= shares[:, [role != "quality" for role in roles]].sum(axis=1, keepdims=True)
    weights = np.tile(TRADE_OFFS, PERTURBED)[:, None] * shares

    def score(codes: np.ndarray, knob: int) -> np.ndarray:
        size = int(sizes[knob])
        options = np.repeat(codes, size, axis=0)
        options[:, knob] = np.tile(np.arange(size), len(codes))
        costs = surrogate.log_cost(options, np.repeat(weights, size, axis=0))
        return surrogate.mean.predict_options(codes, knob, size, shifts, model) + costs.reshape(-1, size)

    return score


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
