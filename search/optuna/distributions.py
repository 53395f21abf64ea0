"""What designers need to know of Optuna's search spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

MOST_CHOICES = 64
"""An integer parameter of more values than this counts as continuous."""

Distributions = dict[str, BaseDistribution]


def is_discrete(distribution: BaseDistribution) -> bool:
    """Whether a parameter has few enough values to learn each one by itself."""
    return (
        isinstance(distribution, (CategoricalDistribution, IntDistribution))
        and not getattr(distribution, "log", False)
        and len(choices_of(distribution)) <= MOST_CHOICES
    )


def choices_of(distribution: BaseDistribution) -> tuple[Any, ...]:
    """The values of a discrete distribution, in its order."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution)
    return tuple(range(distribution.low, distribution.high + 1, distribution.step))


def offers(distribution: BaseDistribution | None, value: Any) -> bool:
    """Whether a discrete distribution, if there is one, has a value."""
    return distribution is not None and value in choices_of(distribution)


def completed(
    sampler: BaseSampler, study: Study, trial: FrozenTrial, known: Distributions, space: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """A proposal of `sampler` for every parameter of `space`, as Optuna's trials would complete it.

    Args:
        known: the relative search space that the sampler inferred.
    """
    drawn = sampler.sample_relative(study, trial, known)
    return {
        name: drawn[name]
        if name in drawn and offers(distribution, drawn[name])
        else sampler.sample_independent(study, trial, name, distribution)
        for name, distribution in space.items()
    }
