"""How much damage a policy does, as a structured mean of the damage of its choices.

Damage is y = log(KL + 1e-3), KL from the uncompressed model's outputs in nats. The mean adds up the damage of single choices::

    y = b + (1 + a) log(1e-3 + sum_d theta[d, x_d]),   log theta = prior + kind + knob + option offset

theta is 0 at the neutral choice; recovery multiplies the theta of each kind by a factor of its own. A group's channels are removed
of what the width left, so that theirs has an entry for each pair of both: the same share of fewer channels is guessed to do
the same damage, and may prove to do another. Offsets are found by maximum a posteriori with standard deviations 1.5, 1.0 (0.5 for
a knob whose prior was measured) and 0.5, and 0.3 for a and b.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array

from ..dimensions import RECOVERY_KIND, SearchDimension
from .option_layout import OptionLayout

FLOOR = 1e-3
"""This is added to every divergence, in nats, before its logarithm is taken."""

NOISE = 0.2
"""One observed log damage has this standard deviation."""

BROKEN = 0.0
"""A model is broken beyond this log damage, in log nats; only its being broken is worth learning."""

BROKEN_WEIGHT = 0.1
"""A broken model weighs this much of an observation in the fit."""

MAP_DEVIATION = 0.3
"""The slope and the offset of the log damages of whole policies deviate this far from 1 and 0."""

RECOVERY_DEVIATION = 1.0
"""The log of the factor by which recovery reduces the damage of a kind deviates this far from its guess."""

FIRST_STEPS = 60
"""The optimiser takes at most so many iterations from scratch."""

NEXT_STEPS = 20
"""The optimiser takes at most so many iterations from the last fit."""


def weights_of(damage: np.ndarray) -> np.ndarray:
    """Weight of each observation: broken models count for less."""
    return np.where(damage > BROKEN, BROKEN_WEIGHT, 1.0)


class StructuredMean:
    """The additive mean; keep one over a search, each fit starts from the last.

    Args:
        dimensions: the knobs; at most one of kind `RECOVERY_KIND`.
    """

    def __init__(self, dimensions: Sequence[SearchDimension]) -> None:
        recoveries = [index for index, knob in enumerate(dimensions) if knob.kind == RECOVERY_KIND]
        self._recovery = recoveries[0] if recoveries else None
        self._harming = [index for index in range(len(dimensions)) if index not in recoveries]
        self._layout = OptionLayout([dimensions[index] for index in self._harming])
        self._one_kind = np.eye(len(self._layout.kinds))[self._layout.kind_of_option]
        levels = len(dimensions[self._recovery].choices) if self._recovery is not None else 1
        self._lay_out_recovery(levels, dimensions)
        self._scaled = np.zeros(2 + self._layout.spread.shape[1] + self._levels * len(self._layout.kinds))
        self._fitted = self._unpack(self._scaled)

    @property
    def parameters(self) -> np.ndarray:
        """What is fitted, in standard deviations of its prior, [parameters]: zeros before the first fit."""
        return self._scaled

    @property
    def theta(self) -> np.ndarray:
        """Log damage of every option (of channels: width after width), knobs one after the other; -inf for neutral ones."""
        return self._fitted[0]

    def fit(self, codes: np.ndarray, damage: np.ndarray) -> None:
        """Fit to codes [n, knobs] and damage [n]."""
        weights, design = weights_of(damage) / NOISE**2, self._design(codes)

        def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            values, gradient = self._values_and_pullback(scaled, design)
            errors = values - damage
            loss = 0.5 * float(weights @ errors**2 + scaled @ scaled)
            return loss, gradient(weights * errors) + scaled

        found = minimize(
            objective,
            self._scaled,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": NEXT_STEPS if self._scaled.any() else FIRST_STEPS},
        )
        self._scaled, self._fitted = found.x, self._unpack(found.x)

    def predict(self, codes: np.ndarray) -> np.ndarray:
        """Damage [n] of codes [n, knobs]."""
        return self.predict_shifted(codes, np.zeros((1, len(self._layout.prior))), np.zeros(len(codes), dtype=int))

    def predict_drawn(self, codes: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Damage [draws, n] under other values [draws, parameters] of what is fitted."""
        unpacked = [self._unpack(scaled) for scaled in parameters]
        single = np.stack([self._nats(theta, recovery).ravel() for theta, recovery, _, _ in unpacked], axis=1)
        slopes, offsets = (np.array([u[index] for u in unpacked])[:, None] for index in (2, 3))
        return offsets + slopes * np.log(FLOOR + (self._design(codes) @ single).T)

    def jacobian(self, codes: np.ndarray) -> np.ndarray:
        """Derivatives [n, parameters] of the damage by what is fitted, at the fit."""
        theta, recovery, slope, _ = self._fitted
        design, single = self._design(codes), self._nats(theta, recovery)
        total = FLOOR + design @ single.ravel()
        flow = np.divide(slope, total)[:, None, None] * design.toarray().reshape(-1, *single.shape) * single
        return np.hstack([
            np.full((len(codes), 1), MAP_DEVIATION),
            MAP_DEVIATION * np.log(total)[:, None],
            flow.sum(axis=1) @ self._layout.spread,
            (RECOVERY_DEVIATION * (flow @ self._one_kind) * self._recovery_free).reshape(len(codes), -1),
        ])  # fmt: skip

    def predict_shifted(self, codes: np.ndarray, shifts: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Damage [n] where row i is judged by `theta` + shifts[which[i]]; shifts [any, options] make perturbed models."""
        single = self._single(shifts)[which[:, None], self._options(codes)]
        return self._mapped(self._parts(codes, single).sum(axis=1))

    def shifts(self, deviations: np.ndarray) -> np.ndarray:
        """What deviations [any, parameters] of what is fitted change of `theta`, [any, options]."""
        return deviations[:, 2 : 2 + self._layout.spread.shape[1]] @ self._layout.spread.T

    def predict_options(
        self, codes: np.ndarray, knob: int, size: int, shifts: np.ndarray, which: np.ndarray
    ) -> np.ndarray:
        """Damage [n, size] of each row with each of the `size` choices of one knob; otherwise as `predict_shifted`."""
        if (
            knob == self._recovery or (place := self._harming.index(knob)) == self._layout.width
        ):  # other knobs' options change
            options = np.repeat(codes, size, axis=0)
            options[:, knob] = np.tile(np.arange(size), len(codes))
            return self.predict_shifted(options, shifts, np.repeat(which, size)).reshape(-1, size)
        single, chosen = self._single(shifts), self._options(codes)
        parts = self._parts(codes, single[which[:, None], chosen])
        offered = single[which[:, None], (chosen[:, place] - codes[:, knob])[:, None] + np.arange(size)]
        if self._recovery is not None:
            offered *= np.exp(self._fitted[1])[codes[:, self._recovery], self._layout.kind_of_knob[place]][:, None]
        return self._mapped(np.maximum(parts.sum(axis=1) - parts[:, place], 0.0)[:, None] + offered)

    def _single(self, shifts: np.ndarray) -> np.ndarray:
        """Nats of every option in each perturbed model [any, options]: few, so that exponentials are taken here."""
        return np.exp(np.minimum(self._fitted[0] + shifts, 20.0))

    def _parts(self, codes: np.ndarray, single: np.ndarray) -> np.ndarray:
        """Nats of each option [n, harming knobs] after recovery."""
        if self._recovery is None:
            return single
        return single * np.exp(self._fitted[1])[codes[:, self._recovery]][:, self._layout.kind_of_knob]

    def _options(self, codes: np.ndarray) -> np.ndarray:
        """Place in theta [n, harming knobs] of the option each knob has."""
        harming = codes[:, self._harming]
        width = harming[:, self._layout.width] if self._layout.width is not None else np.zeros(len(codes), dtype=int)
        return self._layout.starts + harming + width[:, None] * self._layout.strides

    def _mapped(self, total: np.ndarray) -> np.ndarray:
        _, _, slope, offset = self._fitted
        return offset + slope * np.log(FLOOR + total)

    def _lay_out_recovery(self, levels: int, dimensions: Sequence[SearchDimension]) -> None:
        self._levels = levels
        self._recovery_prior = np.zeros((levels, len(self._layout.kinds)))
        if self._recovery is not None:
            epochs = [float(choice) for choice in dimensions[self._recovery].choices]
            self._recovery_prior -= np.log1p(np.array(epochs) - min(epochs))[:, None]
            self._recovery_free = (np.array(epochs) > min(epochs))[:, None]
        else:
            self._recovery_free = np.zeros((1, 1), dtype=bool)

    def _unpack(self, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        """theta [options], log recovery [levels, kinds], slope 1 + a, offset b."""
        theta = self._layout.prior + self._layout.spread @ scaled[2 : 2 + self._layout.spread.shape[1]]
        free = (
            scaled[2 + self._layout.spread.shape[1] :].reshape(self._levels, len(self._layout.kinds))
            * self._recovery_free
        )
        recovery = self._recovery_prior + RECOVERY_DEVIATION * free
        return theta, recovery, 1 + MAP_DEVIATION * float(scaled[1]), MAP_DEVIATION * float(scaled[0])

    def _nats(self, theta: np.ndarray, recovery: np.ndarray) -> np.ndarray:
        """Damage [levels, options] of every option at every level of recovery."""
        return np.exp(np.minimum(theta + recovery[:, self._layout.kind_of_option], 20.0))

    def _design(self, codes: np.ndarray) -> csr_array:
        """1 where a row has an option at its level of recovery, [n, levels x options]."""
        options = self._options(codes)
        if self._recovery is not None:
            options = options + len(self._layout.prior) * codes[:, self._recovery, None]
        rows, knobs = options.shape
        ends = np.arange(0, rows * knobs + 1, knobs) if knobs else np.zeros(rows + 1, dtype=int)
        return csr_array(
            (np.ones(options.size), options.ravel(), ends), shape=(rows, self._levels * len(self._layout.prior))
        )

    def _values_and_pullback(self, scaled: np.ndarray, design: csr_array):
        theta, recovery, slope, offset = self._unpack(scaled)
        single = self._nats(theta, recovery)
        total = FLOOR + design @ single.ravel()
        logs = np.log(total)

        def pullback(errors: np.ndarray) -> np.ndarray:
            flow = (design.T @ (errors * slope / total)).reshape(single.shape) * single
            return np.concatenate([
                [MAP_DEVIATION * errors.sum(), MAP_DEVIATION * (errors * logs).sum()],
                flow.sum(axis=0) @ self._layout.spread,
                (RECOVERY_DEVIATION * (flow @ self._one_kind) * self._recovery_free).ravel(),
            ])  # fmt: skip

        return offset + slope * logs, pullback
