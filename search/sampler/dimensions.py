"""A search space as the policy sampler sees it: knobs with a few ordered choices, each with a guess of the damage it does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...spaces.knobs.kind import steps_damage
from ...spaces.knobs.quantization import bits_damage
from ...spaces.knobs.recovery import RECOVERY_KIND
from ...spaces.knobs.registry import KNOB_KINDS

LIGHTEST_DAMAGE = 1e-3
"""A choice that is not neutral is guessed to do at least this damage, in nats."""

LEAST_MEASURED = 1e-6
"""Measurements cannot distinguish smaller damages, in nats: they are made in single precision."""


@dataclass(frozen=True)
class SearchDimension:
    """One knob of a study.

    Attributes:
        name: its parameter's name.
        kind: knobs of one kind and choice are expected to do damage of the same order.
        choices: what it offers.
        neutral: index of the choice that does no damage; None where no choice is known to.
        prior: log of the damage in nats that each choice is guessed to do alone; at `neutral` it is not read.
        measured: whether the prior comes from measuring this very knob.
        offered: how many of the choices, the first ones, may be proposed: trials may only be found at the others. None is all.
    """

    name: str
    kind: str
    choices: tuple[Any, ...]
    neutral: int | None
    prior: tuple[float, ...]
    measured: bool = False
    offered: int | None = None

    @property
    def positions(self) -> np.ndarray:
        """Choices on an ordinal scale in [0, 1], by their guessed damage; the neutral one at 0."""
        damage = [-math.inf if index == self.neutral else value for index, value in enumerate(self.prior)]
        ranks = np.argsort(np.argsort(damage, kind="stable"), kind="stable")
        return ranks / max(1, len(self.choices) - 1)


def search_dimension(
    name: str, kind: str, choices: Sequence[Any], neutral: Any = None, known: Mapping[Any, float] | None = None
) -> SearchDimension:
    """A knob with guesses of its damage: by its kind, and scaled to what was measured of the knob.

    Args:
        kind: the name of a kind of knob, which guesses the damage; others count by their place, but as bit-widths where they
            end in "bits".
        neutral: the choice that does no damage, one of `choices`; None where there is none.
        known: choice -> damage measured with this knob alone, in nats; other choices are scaled like the nearest of these.
    """
    index = list(choices).index(neutral) if neutral in choices else None
    guesses = {choice: math.log(guess) for choice, guess in guessed_damage(kind, choices, neutral).items()}
    scales = {
        choice: math.log(max(damage, LEAST_MEASURED)) - guesses[choice] for choice, damage in (known or {}).items()
    }

    def scale(choice: Any) -> float:
        nearest = min(scales, key=lambda other: abs(guesses[other] - guesses[choice]), default=None)
        return scales[nearest] if nearest is not None else 0.0

    prior = tuple(guesses[choice] + scale(choice) for choice in choices)
    return SearchDimension(name, kind, tuple(choices), index, prior, bool(scales))


def recovery_dimension(name: str, offered: Sequence[float], found: Iterable[float]) -> SearchDimension:
    """The knob of recovery: the epochs it offers, and those after which trials were stopped."""
    choices = (*offered, *sorted(set(found) - set(offered)))
    return replace(search_dimension(name, RECOVERY_KIND, choices), offered=len(offered))


def guessed_damage(kind: str, choices: Sequence[Any], neutral: Any = None) -> dict[Any, float]:
    """Choice -> nats it is guessed to do alone, whatever the layer; arguments as for `search_dimension`."""
    index = list(choices).index(neutral) if neutral in choices else None
    return {choice: max(LIGHTEST_DAMAGE, _guess(kind, choice, choices, index)) for choice in choices}


def encode(dimensions: Sequence[SearchDimension], parameters: Mapping[str, Any]) -> np.ndarray:
    """Index of each knob's choice, shape [knobs]; a knob that was not asked for counts as neutral, or as its first choice.

    Raises:
        ValueError: a value is none of the knob's choices.
    """
    return np.array([
        knob.choices.index(parameters[knob.name]) if knob.name in parameters else knob.neutral or 0
        for knob in dimensions
    ])  # fmt: skip


def offered_choices(dimensions: Sequence[SearchDimension]) -> dict[str, tuple[Any, ...]]:
    """The choices of each dimension that may be proposed, by its name."""
    return {knob.name: knob.choices[: knob.offered] for knob in dimensions}


def most_below(choices: Sequence[float], bound: float) -> int:
    """Index of the largest choice that is not above `bound`, else of the smallest."""
    fitting = [choice for choice in choices if choice <= bound]
    return list(choices).index(max(fitting) if fitting else min(choices))


def decode(dimensions: Sequence[SearchDimension], codes: np.ndarray) -> dict[str, Any]:
    """Parameters of one row of codes; the inverse of `encode`."""
    return {knob.name: knob.choices[int(code)] for knob, code in zip(dimensions, codes, strict=True)}


def _guess(kind: str, choice: Any, choices: Sequence[Any], neutral: int | None) -> float:
    if kind in KNOB_KINDS:
        return KNOB_KINDS[kind].guess(choice, choices)
    if kind.endswith("bits"):
        return bits_damage(float(choice))
    return steps_damage(choice, choices, neutral or 0)
