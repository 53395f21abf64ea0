"""What a policy will measure where that cannot be counted, refitted as measurements come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import BayesianRidge

from .coordinates import Coordinate


class AdditiveModel:
    """Bayesian linear regression on one-hot choices and on what can be counted, with its own uncertainty.

    Regularisation and noise are those of the greatest evidence (MacKay 1992; scikit-learn's `BayesianRidge`).

    Args:
        coordinates: the knobs of codes.
    """

    def __init__(self, coordinates: Sequence[Coordinate]) -> None:
        self._sizes = [len(knob.choices) for knob in coordinates]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]]).astype(int)

    def fit(self, codes: np.ndarray, counted: np.ndarray, values: np.ndarray) -> None:
        """Fit to codes [n, knobs], counted figures [n, any] and values [n]."""
        self._centre, self._scale = counted.mean(axis=0), np.maximum(counted.std(axis=0), 1e-9)
        self._model = BayesianRidge(compute_score=True).fit(self._features(codes, counted), values)

    @property
    def evidence(self) -> float:
        """Log marginal likelihood of the values it was fitted to."""
        return float(self._model.scores_[-1])

    @property
    def noise(self) -> float:
        """Standard deviation of one value around what the choices tell of it."""
        return float(self._model.alpha_) ** -0.5

    def predict(self, codes: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviation of the mean, without the noise of one value, each [n]."""
        mean, deviation = self._model.predict(self._features(codes, counted), return_std=True)
        return mean, np.sqrt(np.maximum(deviation**2 - self.noise**2, 0.0))

    def mean(self, codes: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """The mean alone [n], by table look-up: a hundred times as fast."""
        weights, centred = self._model.coef_, (counted - self._centre) / self._scale
        options = sum(self._sizes)
        chosen = weights[:options][codes + self._starts].sum(axis=1)
        return self._model.intercept_ + chosen + len(self._sizes) ** 0.5 * centred @ weights[options:]

    def _features(self, codes: np.ndarray, counted: np.ndarray) -> np.ndarray:
        one_hot = [np.eye(size)[codes[:, index]] for index, size in enumerate(self._sizes)]
        # What is counted speaks for all knobs at once: one standard deviation of it weighs as much as all of them.
        weight = len(self._sizes) ** 0.5
        return np.hstack([*one_hot, weight * (counted - self._centre) / self._scale])


class CostModel:
    """A positive cost whose choices add up, as the times of layers do, or multiply, as widths do: whichever is likelier.

    It takes and gives logarithms.
    """

    def __init__(self, coordinates: Sequence[Coordinate]) -> None:
        self._added, self._multiplied = AdditiveModel(coordinates), AdditiveModel(coordinates)

    def fit(self, codes: np.ndarray, counted: np.ndarray, logs: np.ndarray) -> None:
        """Fit to codes [n, knobs], log counted figures [n, any] and log costs [n]."""
        self._unit = logs.mean()
        relative = logs - self._unit
        self._least = float(np.exp(relative.min())) / 4
        self._multiplied.fit(codes, counted, relative)
        self._added.fit(codes, np.exp(counted - counted.mean(axis=0)), np.exp(relative))
        # The density of costs against that of their logarithms: one more factor, the cost itself.
        self._adds = self._added.evidence + relative.sum() > self._multiplied.evidence
        self._counted_unit = counted.mean(axis=0)

    def predict(self, codes: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the log cost and how uncertain that mean is as standard deviation, each [n].

        Noise is left out: of two policies that are nearly one, the second is not better by the luck of its measurement.
        """
        if not self._adds:
            mean, deviation = self._multiplied.predict(codes, counted)
            return mean + self._unit, deviation
        mean, deviation = self._added.predict(codes, np.exp(counted - self._counted_unit))
        mean = np.maximum(mean, self._least)
        return np.log(mean) + self._unit, deviation / mean

    def mean(self, codes: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """The mean alone [n], faster."""
        if not self._adds:
            return self._multiplied.mean(codes, counted) + self._unit
        mean = self._added.mean(codes, np.exp(counted - self._counted_unit))
        return np.log(np.maximum(mean, self._least)) + self._unit
