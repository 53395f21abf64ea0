"""How sure the damage of a policy is: draws from what trials leave likely of the structured mean, and of what it leaves unexplained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from .damage_model import NOISE, StructuredMean, weights_of

Scales = tuple[float, float]
"""Of the residual: length in units of the root of the number of knobs, and standard deviation."""

GRID: tuple[Scales, ...] = tuple(product((0.25, 0.5, 1.0, 2.0), (0.1, 0.3, 0.6)))


class DamagePosterior:
    """The structured mean's parameters and a Gaussian process on what they leave unexplained, both uncertain.

    Around its fit the mean is taken for linear in its parameters, whose prior is standard normal (Laplace's approximation;
    MacKay 1992), so that damage is a Gaussian process whose kernel is the parameters' and an RBF. The RBF's scales are the
    likeliest of a grid. Parameters are drawn by Matheron's rule (Wilson et al. 2021, arXiv:2011.04026) and predict through
    the mean as it is, not as linear: an untried choice may do far more damage than the fit says, hardly less.

    Args:
        mean: fitted to `codes` and `damage`.
        positions: codes -> positions in [0, 1], both [n, knobs].
        codes, damage: of trials, shapes [n, knobs] and [n].
        pending: codes of policies that are believed to turn out as predicted.
        grid: of scales to choose from; `scales` are those chosen.
    """

    def __init__(
        self,
        mean: StructuredMean,
        positions: Callable[[np.ndarray], np.ndarray],
        codes: np.ndarray,
        damage: np.ndarray,
        pending: np.ndarray,
        grid: Sequence[Scales] = GRID,
    ) -> None:
        self._mean, self._positions = mean, positions
        self._codes = np.concatenate([codes, pending])
        self._damage = np.concatenate([damage, mean.predict(pending)])
        self._noise = NOISE**2 / np.concatenate([weights_of(damage), np.ones(len(pending))])
        self._slopes = mean.jacobian(self._codes)
        linear = self._damage - mean.predict(self._codes) + self._slopes @ mean.parameters
        squared, shared = self._squared(self._codes), self._slopes @ self._slopes.T
        fits = [self._try(squared, shared, linear, scales) for scales in grid]
        _, self._both, self.scales = max(fits, key=lambda fit: fit[0])
        self._alone = self._factor(_rbf(squared, self.scales))

    def mean_of(self, codes: np.ndarray) -> np.ndarray:
        """Likeliest damage [n] of codes [n, knobs]."""
        left = self._damage - self._mean.predict(self._codes)
        residual = _rbf(self._squared(codes), self.scales) @ cho_solve((self._alone, True), left, check_finite=False)
        return self._mean.predict(codes) + residual

    def draws(self, codes: np.ndarray, normals: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Damage [draws, n] of codes [n, knobs].

        Args:
            normals: standard normals [draws], of what the residual leaves open.
            generator: of the parameters.
        """
        parameters = self._mean.parameters + self._deviations(len(normals), generator)
        structured = self._mean.predict_drawn(np.concatenate([self._codes, codes]), parameters)
        kernel = _rbf(self._squared(codes), self.scales)
        unexplained = self._damage - structured[:, : len(self._codes)]
        residual = kernel @ cho_solve((self._alone, True), unexplained.T, check_finite=False)
        reduced = solve_triangular(self._alone, kernel.T, lower=True, check_finite=False)
        deviation = np.sqrt(np.maximum(self.scales[1] ** 2 - (reduced**2).sum(axis=0), 1e-10))
        return structured[:, len(self._codes) :] + residual.T + deviation * normals[:, None]

    def shifts(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draws [count, options] of how far the log damage of single choices may be from the fit."""
        return self._mean.shifts(self._deviations(count, generator))

    def _deviations(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draws [count, parameters] of how far the parameters are from their fit."""
        prior = generator.standard_normal((count, self._slopes.shape[1]))
        seen = prior @ self._slopes.T + generator.standard_normal((count, len(self._codes))) @ self._alone.T
        return prior - cho_solve((self._both, True), seen.T, check_finite=False).T @ self._slopes

    def _try(self, squared: np.ndarray, shared: np.ndarray, linear: np.ndarray, scales: Scales):
        """Log marginal likelihood of scales, the Cholesky factor of the whole covariance, and the scales."""
        factor = self._factor(shared + _rbf(squared, scales))
        weights = cho_solve((factor, True), linear, check_finite=False)
        return -0.5 * linear @ weights - np.log(np.diag(factor)).sum(), factor, scales

    def _factor(self, kernel: np.ndarray) -> np.ndarray:
        """Lower Cholesky factor [n, n] of a kernel and the noise."""
        return cholesky(kernel + np.diag(self._noise), lower=True, check_finite=False)

    def _squared(self, codes: np.ndarray) -> np.ndarray:
        """Mean squared distances [m, n] of codes [m, knobs] to the trials, by one matrix product, which is what takes time."""
        first, second = self._positions(codes), self._positions(self._codes)
        norms = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)
        return np.maximum(norms - 2 * first @ second.T, 0.0) / first.shape[1]


def _rbf(squared: np.ndarray, scales: Scales) -> np.ndarray:
    length, signal = scales
    return signal**2 * np.exp(-0.5 * squared / length**2)
