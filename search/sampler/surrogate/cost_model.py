"""What a policy will measure where that cannot be counted, refitted as measurements come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp, softmax

from ..dimensions import SearchDimension

TRUST = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Counted figures may explain this many times as much as the choices do."""

LEAST_SHARE = 0.01
"""A trust of a smaller share of the likelihood is left out."""


class AdditiveModel:
    """Bayesian linear regression on one-hot choices and on what can be counted, with its own uncertainty.

    Regularisation and noise are those of the greatest evidence (MacKay 1992; scikit-learn's `BayesianRidge`). How far what is
    counted is trusted is averaged over, each trust as likely as the values make it.

    Args:
        dimensions: the knobs of codes.

    Attributes:
        evidence: log marginal likelihood of the values it was fitted to.
    """

    def __init__(self, dimensions: Sequence[SearchDimension]) -> None:
        self._sizes = [len(knob.choices) for knob in dimensions]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]]).astype(int)

    def fit(self, codes: np.ndarray, counted: np.ndarray, values: np.ndarray) -> None:
        """Fit to codes [n, knobs], counted figures [n, any] and values [n]."""
        from sklearn.linear_model import BayesianRidge  # only here: importing it takes a second

        self._centre, self._scale = counted.mean(axis=0), np.maximum(counted.std(axis=0), 1e-9)
        trusts = TRUST if counted.shape[1] else TRUST[:1]
        fits = [BayesianRidge(compute_score=True).fit(self._features(codes, counted, t), values) for t in trusts]
        scores = np.array([fit.scores_[-1] for fit in fits])
        self.evidence = float(logsumexp(scores) - np.log(len(trusts)))
        shares = softmax(scores)
        kept = [index for index in range(len(fits)) if shares[index] > LEAST_SHARE]
        self._fits = [(shares[index] / shares[kept].sum(), trusts[index], fits[index]) for index in kept]
        options = sum(self._sizes)
        self._intercept = sum(share * fit.intercept_ for share, _, fit in self._fits)
        self._chosen = np.sum([share * fit.coef_[:options] for share, _, fit in self._fits], axis=0)
        self._slopes = np.sum([s * self._weight(trust) * fit.coef_[options:] for s, trust, fit in self._fits], axis=0)

    @property
    def noise(self) -> float:
        """Standard deviation of one value around the mean that the choices predict."""
        return sum(share / float(fit.alpha_) for share, _, fit in self._fits) ** 0.5

    def predict(self, codes: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviation of the mean, without the noise of one value, each [n]."""
        middle, variance = self.mean(codes, counted), np.zeros(len(codes))
        for share, trust, fit in self._fits:
            mean, deviation = fit.predict(self._features(codes, counted, trust), return_std=True)
            variance += share * (np.maximum(deviation**2 - 1 / float(fit.alpha_), 0.0) + (mean - middle) ** 2)
        return middle, np.sqrt(variance)

    def mean(self, codes: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """The mean alone [n], by table look-up: a hundred times as fast."""
        centred = (counted - self._centre) / self._scale
        return self._intercept + self._chosen[codes + self._starts].sum(axis=1) + centred @ self._slopes

    def _features(self, codes: np.ndarray, counted: np.ndarray, trust: float) -> np.ndarray:
        one_hot = [np.eye(size)[codes[:, index]] for index, size in enumerate(self._sizes)]
        return np.hstack([*one_hot, self._weight(trust) * (counted - self._centre) / self._scale])

    def _weight(self, trust: float) -> float:
        """Of what is counted, which speaks for all knobs at once: one standard deviation of it weighs as much as all of them."""
        return trust * len(self._sizes) ** 0.5


class CostModel:
    """A positive cost whose choices add up, as the times of layers do, or multiply, as widths do: whichever is likelier.

    It takes and gives logarithms.
    """

    def __init__(self, dimensions: Sequence[SearchDimension]) -> None:
        self._added, self._multiplied = AdditiveModel(dimensions), AdditiveModel(dimensions)

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
