"""Keeps any method from proposing what was tried, and from what is likely to fail, before a trial is made of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...spaces.space import Choice, Knob, Space
from .designer import Choices, CompletedTrial
from .dimensions import SearchDimension, encode, offered_choices
from .trial_log import TrialLog

REDRAWS = 8
"""A method is asked for at most this many proposals until one is accepted."""

MUTATIONS = 40
"""After those, this many copies of the last proposal are tried, with more and more knobs drawn anew."""

UNTRIED_DRAWS = 1000
"""At most this many random points of a large space are drawn to find one that was not tried."""

LISTED = 20_000
"""In a space of at most this many points every one is looked at, so that the last one is found too."""


class Untried:
    """Which points of a space were not tried yet.

    Args:
        tried: digests of the policies that were, kept up to date by its owner.
        seed: of the order in which spare points are looked for.
    """

    def __init__(self, space: Space, tried: Collection[str], seed: object) -> None:
        self._space, self._tried = space, tried
        self._random = random.Random(f"{seed}")
        is_small = math.prod(len(knob.choices) for knob in space.knobs) <= LISTED
        self._listed = self._shuffled(space.knobs) if is_small else None
        self._spare: dict[str, Choice] | None = None

    def __contains__(self, parameters: Mapping[str, Choice]) -> bool:
        return self._space.policy(parameters).digest not in self._tried

    def spare(self) -> dict[str, Choice] | None:
        """A point that was not tried, the same one until it is; None where the space is exhausted."""
        if self._spare is None or self._spare not in self:
            self._spare = next((point for point in self._points() if point in self), None)
        return self._spare

    def _points(self) -> Iterable[dict[str, Choice]]:
        """The points of a small space from where the last search stopped; random ones of a large space."""
        return self._listed or (self._drawn() for _ in range(UNTRIED_DRAWS))

    def _drawn(self) -> dict[str, Choice]:
        return {knob.name: self._random.choice(knob.choices) for knob in self._space.knobs}

    def _shuffled(self, knobs: Sequence[Knob]) -> Iterator[dict[str, Choice]]:
        sizes = [len(knob.choices) for knob in knobs]
        for point in self._random.sample(range(math.prod(sizes)), math.prod(sizes)):
            codes = np.unravel_index(point, sizes)
            yield {knob.name: knob.choices[int(code)] for knob, code in zip(knobs, codes, strict=True)}


class ProposalFilter:
    """Draws of any method, repeated until one was not tried.

    Where a trial has failed, a policy is accepted in as many of its proposals as it is likely to come to its end.

    Args:
        dimensions: the search space.
        untried: says which points may be proposed, and has a spare one where the method finds none.
        seed: of what is changed in a proposal that was refused.
        learns_failures: False where the method avoids what is likely to fail by itself.
    """

    def __init__(
        self,
        dimensions: Sequence[SearchDimension],
        untried: Untried,
        seed: int | None = None,
        learns_failures: bool = True,
    ) -> None:
        self._offered, self._untried = offered_choices(dimensions), untried
        self._log = TrialLog(dimensions)
        self._generator = np.random.default_rng(seed)
        self._learns_failures = learns_failures

    def reseed(self) -> None:
        """Start again from a random seed."""
        self._generator = np.random.default_rng()

    def update(self, completed: Sequence[CompletedTrial]) -> None:
        """Learn from trials that have ended since the last update."""
        if self._learns_failures:
            self._log.update(completed)

    def first_accepted(self, draw: Callable[[], Choices]) -> Choices:
        """A draw that was not tried, else a changed one, else the spare point; empty where the space is exhausted."""
        may_end = self._log.feasibility()
        least = self._generator.random()

        def accepts(choices: Choices) -> bool:
            if choices not in self._untried:
                return False
            return may_end is None or may_end(encode(self._log.dimensions, choices)[None])[0] >= least

        return accepted(draw, accepts, self._offered, self._generator) or self._untried.spare() or {}


def accepted(
    draw: Callable[[], Choices],
    accepts: Callable[[Choices], bool],
    offered: Mapping[str, Sequence[Any]],
    generator: np.random.Generator,
) -> Choices | None:
    """The first of `REDRAWS` draws that is accepted, else of copies of the last with ever more choices drawn anew."""
    found: Choices = {}
    for _ in range(REDRAWS):
        if accepts(found := draw()):
            return found
    for attempt in range(MUTATIONS):
        count = 1 + attempt * len(offered) // MUTATIONS
        names = generator.choice(sorted(offered), size=count, replace=False)
        changed = {**found, **drawn({str(name): offered[str(name)] for name in names}, generator)}
        if accepts(changed):
            return changed
    return None


def drawn(offered: Mapping[str, Sequence[Any]], generator: np.random.Generator) -> dict[str, Any]:
    """One of the choices of each name, at random."""
    return {name: choices[int(generator.integers(len(choices)))] for name, choices in offered.items()}
