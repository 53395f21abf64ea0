"""How likely a policy is to come to its end, learned from those that did and those that failed."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import ndtr

SHARED = 10.0
"""The single choices of a policy explain this variance of the latent figure, all knobs together."""

NEARBY = 1.0
"""Policies that differ in few knobs share up to this variance in addition."""

REACH = 2.0
"""Two policies that differ in this many knobs share `NEARBY` divided by e."""

NOISE = 0.1
"""No choice explains this variance of the latent figure."""

CERTAINTY = 1.5
"""A latent figure of 1 is this many standard deviations away from failing."""

LEAST = 0.02
"""No policy is less likely than this to come to its end, as failures may have causes outside it."""


class Feasibility:
    """Least-squares classification by a Gaussian process on what policies have in common.

    The latent figure is 1 where nothing failed and -1 at a failure. Two policies share what their common choices do, and more
    where they differ in few knobs: a choice that always fails is found out, and the neighbours of one failure are avoided.
    """

    def __init__(self, codes: np.ndarray, failed: np.ndarray) -> None:
        """Fit to codes [n, knobs] and whether each failed [n]."""
        self._codes = codes
        covariance = self._kernel(codes) + NOISE * np.eye(len(codes))
        self._weights = cho_solve(cho_factor(covariance, lower=True), np.where(failed, -2.0, 0.0))

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Probability [n], of one where nothing failed nearby, that policies of codes [n, knobs] come to their end."""
        latent = 1 + self._kernel(codes) @ self._weights
        return np.clip(ndtr(CERTAINTY * latent) / ndtr(CERTAINTY), LEAST, 1.0)

    def _kernel(self, codes: np.ndarray) -> np.ndarray:
        """Covariance [m, n] of codes [m, knobs] with those it was fitted to."""
        common = sum((codes[:, None, knob] == self._codes[:, knob]).astype(float) for knob in range(codes.shape[1]))
        apart = codes.shape[1] - common
        return SHARED * common / codes.shape[1] + NEARBY * np.exp(-apart / REACH)


class Odds:
    """How likely policies are to come to their end, for one proposal.

    The probability is set to 0 in as many proposals as the policy is likely to fail in, with one threshold for all policies: of a
    multitude of hopeless ones there would always be one more that seems worth the risk.

    Args:
        model: None where nothing has failed.
        threshold: a draw from [0, 1].
    """

    def __init__(self, model: Feasibility | None, threshold: float) -> None:
        self._model, self._threshold = model, threshold

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Probability [n] that policies of codes [n, knobs] come to their end, 0 below the threshold."""
        if self._model is None:
            return np.ones(len(codes))
        likely = self._model(codes)
        return np.where(likely >= self._threshold, likely, 0.0)
