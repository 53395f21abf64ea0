"""What the policy sampler believes of policies it has not tried: their damage, and from it every objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from ..dimensions import SearchDimension
from .cost_model import AdditiveModel, CostModel
from .damage_model import FLOOR, NOISE, StructuredMean
from .damage_posterior import GRID, DamagePosterior

if TYPE_CHECKING:
    from sklearn.isotonic import IsotonicRegression

Role = Literal["quality", "measured"] | int
"""How an objective is known: "quality" follows the damage, "measured" is learned from the choices, and a number is the
column of what the sampler's `counted` callable counts exactly."""

Counted = Callable[[np.ndarray], np.ndarray]
"""codes [n, knobs] -> counted figures [n, columns], all positive."""


Regression = TypeVar("Regression", AdditiveModel, CostModel)

SCALES_LAST = 1.1
"""The residual's scales are chosen again when the number of trials has grown by this factor of those learned from."""

SKILL_LASTS = 1.1
"""The surrogate is judged again when the number of trials has grown by this factor of those learned from."""

FOLDS = 5
"""The cross-validation that judges the surrogate has this many folds."""

ZERO_COUNTS_AS = 0.01
"""A cost of 0 counts as this part of the smallest positive one."""

COSTS_LAST = 1.05
"""Measured costs and constraints are fitted again when the number of trials has grown by this factor of those learned from: from 20
on not at each."""


@dataclass(frozen=True)
class History:
    """Trials so far, as arrays.

    Attributes:
        codes: shape [n, knobs].
        damage: log nats [n]; NaN where it is not known.
        values: minimised objectives on the scale of `Surrogate.scaled`, shape [n, objectives]; NaN where not known.
        violations: constraint -> how far beyond it [n]; NaN where it was not judged.
        left_out: how many more trials there were, which are not learned from.
    """

    codes: np.ndarray
    damage: np.ndarray
    values: np.ndarray
    violations: dict[str, np.ndarray]
    left_out: int = 0


class Surrogate:
    """Keep one over a search: its mean is fitted from where it was.

    Args:
        signs: -1 for each maximised objective, else 1.
        residual: whether the Gaussian process may explain more than half the noise.
    """

    def __init__(
        self,
        dimensions: Sequence[SearchDimension],
        roles: Sequence[Role],
        signs: Sequence[int],
        counted: Counted | None,
        residual: bool = True,
    ) -> None:
        self.dimensions, self.roles, self.signs = dimensions, roles, np.array(signs)
        self._counted, self._grid = counted, GRID if residual else ((1.0, NOISE / 2),)
        self._scales_due = self._costs_due = self._skill_due = 0.0
        self._least = np.full(len(roles), np.inf)
        self._measured: dict[int, CostModel | None] = {}
        self._constraints: dict[str, AdditiveModel | None] = {}
        self._positions = [knob.positions for knob in dimensions]
        self.mean = StructuredMean(dimensions)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Objectives [n, objectives] so that less is better: quality as it is, costs as logarithms, in which equal ratios count the same.

        A cost of 0 has no logarithm: it counts as a hundredth of the smallest positive one so far.
        """
        columns = [
            sign * (column if role == "quality" else np.log(np.maximum(column, floor)))
            for role, sign, column, floor in zip(self.roles, self.signs, values.T, self._floors(values), strict=True)
        ]
        return np.stack(columns, axis=1)

    def _floors(self, values: np.ndarray) -> np.ndarray:
        """What costs count as at least, [objectives]: values [n, objectives] are noted first."""
        self._least = np.minimum(self._least, np.where(values > 0, values, np.inf).min(axis=0, initial=np.inf))
        return np.where(np.isfinite(self._least), self._least * ZERO_COUNTS_AS, 1e-300)

    def counted(self, codes: np.ndarray) -> np.ndarray:
        """Logarithms of what is counted, [n, columns]; no columns where nothing is."""
        return np.log(self._counted(codes)) if self._counted is not None else np.zeros((len(codes), 0))

    def fit(self, history: History, pending: np.ndarray) -> None:
        """Learn from finished trials; `pending` codes [any, knobs] are believed to turn out as predicted."""
        known = ~np.isnan(history.damage)
        codes, damage = history.codes[known], history.damage[known]
        self.mean.fit(codes, damage)
        due = len(codes) + history.left_out >= self._scales_due
        grid = self._grid if due else (self._posterior.scales,)
        self._posterior = DamagePosterior(self.mean, self.positions, codes, damage, pending, grid)
        if due:
            self._scales_due = len(codes) * SCALES_LAST + history.left_out
        self._fit_quality(history, known)
        seen = len(history.codes) + history.left_out
        if seen >= self._costs_due or set(history.violations) != set(self._constraints):
            self._costs_due = len(history.codes) * COSTS_LAST + history.left_out
            self._fit_costs(history)

    def sobered(self, history: History) -> np.ndarray:
        """Values of `history` whose quality is no better than its damage makes likely: luck is not taken for quality.

        The damage is a mean over samples, and says more of what other samples would show than a count of mistakes does.
        """
        values, known = history.values.copy(), ~np.isnan(history.damage)
        for index, model in self._quality.items():
            values[known, index] = np.maximum(values[known, index], model.predict(history.damage[known]))
        return values

    def skill(self, history: History) -> float:
        """How much better the damage of trials left out is predicted than by the mean of the others: 1 is exact, 0 no better.

        Of the squared errors, by cross-validation, anew once there are so many times as many trials.
        """
        known = ~np.isnan(history.damage)
        if known.sum() + history.left_out >= self._skill_due:
            self._skill_due = known.sum() * SKILL_LASTS + history.left_out
            self._skill = self._cross_validated(history.codes[known], history.damage[known])
        return self._skill

    def _cross_validated(self, codes: np.ndarray, damage: np.ndarray) -> float:
        fold, left = np.random.default_rng(len(codes)).permutation(len(codes)) % FOLDS, np.empty(len(codes))
        for index in range(FOLDS):
            mean, out = StructuredMean(self.dimensions), fold == index
            mean.fit(codes[~out], damage[~out])
            posterior = DamagePosterior(
                mean, self.positions, codes[~out], damage[~out], codes[:0], (self._posterior.scales,)
            )
            left[out] = damage[out] - posterior.mean_of(codes[out])
        spread = (damage - damage.mean()) * len(damage) / (len(damage) - 1)  # from the mean of the others
        return 1 - float(
            left @ left / max(spread @ spread, len(damage) * NOISE**2)
        )  # equal damages are as well known as can be

    def log_cost(self, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Scaled costs of codes, weighted row by row with [n, objectives]; quality's weight is not read."""
        counted = self.counted(codes)
        total = np.zeros(len(codes))
        for index, role in enumerate(self.roles):
            if role != "quality":
                total += weights[:, index] * self._mean_cost(index, codes, counted)
        return total

    def draws(self, codes: np.ndarray, normals: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Scaled objectives [draws, n, objectives] at standard normals [draws, 2 + objectives]; infinite where a constraint breaks."""
        damage = self._posterior.draws(codes, normals[:, 0], generator)
        counted = self.counted(codes)
        drawn = np.empty((len(normals), len(codes), len(self.roles)))
        for index, role in enumerate(self.roles):
            if role == "quality":
                drawn[:, :, index] = self._quality[index].predict(damage.ravel()).reshape(damage.shape)
            else:
                middle, spread = self._cost(index, codes, counted)
                drawn[:, :, index] = middle + spread * normals[:, 1 + index : 2 + index]
        for model in self._constraints.values():
            if model is not None:
                middle, spread = model.predict(codes, counted)
                drawn[(middle + np.hypot(spread, model.noise) * normals[:, -1:]) > 0] = np.inf
        return drawn

    def shifts(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draws [count, options] of how far the log damage of single choices may be from `mean.theta`."""
        return self._posterior.shifts(count, generator)

    def positions(self, codes: np.ndarray) -> np.ndarray:
        """Ordinal positions in [0, 1], shape [n, knobs]."""
        columns = [table[codes[:, index]] for index, table in enumerate(self._positions)]
        return np.stack(columns, axis=1)

    def _fit_quality(self, history: History, known: np.ndarray) -> None:
        from sklearn.isotonic import IsotonicRegression  # only here: importing it takes a second

        self._quality: dict[int, IsotonicRegression] = {}
        for index in (index for index, role in enumerate(self.roles) if role == "quality"):
            values = history.values[:, index]
            both = known & ~np.isnan(values)
            self._quality[index] = IsotonicRegression(out_of_bounds="clip").fit(history.damage[both], values[both])

    def _fit_costs(self, history: History) -> None:
        self._measured = {
            index: self._regression(CostModel, history.codes, history.values[:, index])
            for index, role in enumerate(self.roles)
            if role == "measured"
        }
        self._constraints = {
            name: self._regression(AdditiveModel, history.codes, v) for name, v in history.violations.items()
        }

    def _regression(self, kind: type[Regression], codes: np.ndarray, values: np.ndarray) -> Regression | None:
        """A regression on the codes where values [n] are known; None with fewer than two different ones."""
        known = ~np.isnan(values)
        if len(np.unique(values[known])) < 2:
            return None
        model = kind(self.dimensions)
        model.fit(codes[known], self.counted(codes[known]), values[known])
        return model

    def _mean_cost(self, index: int, codes: np.ndarray, counted: np.ndarray) -> np.ndarray:
        role = self.roles[index]
        if isinstance(role, int):
            return self.signs[index] * counted[:, role]
        model = self._measured[index]
        return model.mean(codes, counted) if model is not None else np.zeros(len(codes))

    def _cost(self, index: int, codes: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        role = self.roles[index]
        if isinstance(role, int):
            return self.signs[index] * counted[:, role], np.zeros(len(codes))
        model = self._measured[index]
        return model.predict(codes, counted) if model is not None else (np.zeros(len(codes)), np.zeros(len(codes)))


def log_damage(nats: float) -> float:
    """Damage as the surrogate learns it, from the KL divergence in nats."""
    return float(np.log(max(nats, 0.0) + FLOOR))


def damage_of_drop(drop: float) -> float:
    """Damage guessed from an accuracy drop, where no KL divergence is known."""
    return float(np.log(3 * max(drop, 0.0) + 0.006))
