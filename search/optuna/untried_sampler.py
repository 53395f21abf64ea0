"""Keeps any of Optuna's samplers from proposing what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ..sampler.dimensions import SearchDimension, offered_choices
from ..sampler.untried import ProposalFilter, Untried
from .distributions import Distributions, completed, offers
from .trial_reader import TrialReader


class UntriedSampler(BaseSampler):
    """Another sampler over a known space, whose proposals are drawn again until one was not tried.

    All parameters are drawn together, before any is stored, so that a refused proposal leaves no trial in the study. Enqueued
    trials are left as they are.

    Args:
        sampler: what proposes.
        dimensions: all knobs of the study.
        untried, seed, learns_failures: as for `ProposalFilter`.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        dimensions: Sequence[SearchDimension],
        untried: Untried,
        seed: int | None = None,
        learns_failures: bool = True,
    ) -> None:
        self.sampler = sampler
        self._space: Distributions = {
            name: CategoricalDistribution(choices) for name, choices in offered_choices(dimensions).items()
        }
        self._filter = ProposalFilter(dimensions, untried, seed, learns_failures)
        self._reader = TrialReader()

    @property
    def fallback(self) -> str | None:
        """Why another sampler proposes in place of this one's; None where none does."""
        return getattr(self.sampler, "fallback", None)

    def reseed_rng(self) -> None:
        self._filter.reseed()
        self.sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.sampler.after_trial(study, trial, state, values)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Distributions:
        """The whole space."""
        return self._space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        known = self.sampler.infer_relative_search_space(study, trial)
        if "fixed_params" in trial.system_attrs:
            drawn = self.sampler.sample_relative(study, trial, known)
            return {name: value for name, value in drawn.items() if offers(self._space.get(name), value)}
        ended, _ = self._reader.read(study)
        self._filter.update(ended)
        return dict(
            self._filter.first_accepted(partial(completed, self.sampler, study, trial, known, self._space)),
        )

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)
