"""Policies along the greedy path of an additive damage model: at each step the choice that saves most per damage done.

It is the greedy solution of the continuous relaxation of a multiple-choice knapsack problem (Dantzig 1957; Sinha & Zoltners 1979),
with logarithms of cost as profits and damages as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .dimensions import LEAST_MEASURED, SearchDimension

LEVELS = np.geomspace(0.01, 1.0, 8)
"""A policy of the path is taken at each of these summed damages, in nats, from hardly noticeable to broken."""

LogCost = Callable[[np.ndarray], np.ndarray]
"""codes [n, knobs] -> log of the cost [n]."""


def path_policies(dimensions: Sequence[SearchDimension], start: np.ndarray, log_cost: LogCost) -> list[np.ndarray]:
    """The last policy of the greedy path below each of `LEVELS`, each once.

    Args:
        dimensions: knobs whose `prior` is what choices damage alone; those without a measured prior stay as in `start`.
        start: codes the path begins with, shape [knobs].
    """
    damages = [_damages(knob) for knob in dimensions]
    path = list(_path(dimensions, damages, start, log_cost))
    taken: list[np.ndarray] = []
    for level in LEVELS:
        below = [codes for total, codes in path if total <= level]
        if below and not any((below[-1] == codes).all() for codes in [start, *taken]):
            taken.append(below[-1])
    return taken


def _path(dimensions: Sequence[SearchDimension], damages: Sequence[np.ndarray], start: np.ndarray, log_cost: LogCost):
    """(summed damage, codes) after every step, until nothing saves any more or all is broken."""
    codes, total = start.copy(), 0.0
    moves = [(i, o) for i, knob in enumerate(dimensions) if knob.measured for o in range(len(knob.choices))]
    while total <= LEVELS[-1]:
        rows = np.repeat(codes[None], len(moves), axis=0)
        for row, (index, option) in zip(rows, moves, strict=True):
            row[index] = option
        saved = log_cost(codes[None])[0] - log_cost(rows)
        harm = np.array([damages[index][option] - damages[index][codes[index]] for index, option in moves])
        gain = np.where((saved > 1e-9) & (harm >= 0), saved / np.maximum(harm, LEAST_MEASURED), 0.0)
        if not len(moves) or gain.max() <= 0:
            return
        best = int(gain.argmax())
        codes, total = rows[best].copy(), total + float(harm[best])
        yield total, codes


def _damages(knob: SearchDimension) -> np.ndarray:
    """Nats of each choice, 0 at the neutral one."""
    nats = np.exp(np.array(knob.prior))
    if knob.neutral is not None:
        nats[knob.neutral] = 0.0
    return nats
