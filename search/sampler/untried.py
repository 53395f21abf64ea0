"""Keeps any sampler from proposing what was tried, and from what is likely to fail, before a trial is made of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ...spaces.space import Choice, Knob, Space
from .dimensions import SearchDimension, encode
from .feasibility import Feasibility, failures

REDRAWS = 8
"""Proposals of a sampler that are looked at for one that is accepted."""

MUTATIONS = 40
"""Copies of the last proposal, with more and more knobs drawn anew, that are looked at after those."""

UNTRIED_DRAWS = 1000
"""Random points of a large space that are looked at for one that was not tried."""

LISTED = 20_000
"""Points of a space up to which every one is looked at, so that the last one is found too."""

Parameters = dict[str, Any]


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


class UntriedSampler(BaseSampler):
    """Another sampler over a known space, whose proposals are drawn again until one was not tried.

    All parameters are drawn together, before any is stored, so that a refused proposal leaves no trial behind. Where a trial
    has failed, a policy is accepted in as many of the trials as it is likely to come to its end. Enqueued trials are left as they are.

    Args:
        sampler: what proposes.
        dimensions: all knobs of the study.
        untried: says which points may be proposed, and has a spare one where the sampler finds none.
        seed: of what is changed in a proposal that was refused.
        learns_failures: False where the sampler avoids what is likely to fail by itself.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        dimensions: Sequence[SearchDimension],
        untried: Untried,
        seed: int | None = None,
        learns_failures: bool = True,
    ) -> None:
        self.sampler, self._dimensions, self._untried = sampler, list(dimensions), untried
        self._space: dict[str, BaseDistribution] = {
            knob.name: CategoricalDistribution(knob.choices[: knob.offered]) for knob in dimensions
        }
        self._generator = np.random.default_rng(seed)
        self._learns_failures = learns_failures

    @property
    def fallback(self) -> str | None:
        """Why another sampler proposes in place of this one's; None where none does."""
        return getattr(self.sampler, "fallback", None)

    def reseed_rng(self) -> None:
        self._generator = np.random.default_rng()
        self.sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.sampler.after_trial(study, trial, state, values)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        known = self.sampler.infer_relative_search_space(study, trial)
        if "fixed_params" in trial.system_attrs:
            drawn = self.sampler.sample_relative(study, trial, known)
            return {name: value for name, value in drawn.items() if _offers(self._space.get(name), value)}
        may_end, least = self._feasibility(study), self._generator.random()
        found = accepted(
            lambda: completed(self.sampler, study, trial, known, self._space),
            lambda drawn: drawn in self._untried and may_end(drawn) >= least,
            self._space,
            self._generator,
        )
        return found or self._untried.spare() or {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def _feasibility(self, study: Study) -> Callable[[Parameters], float]:
        """How likely parameters are to come to their end."""
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        failed = failures(ended) if self._learns_failures else []
        if not failed:
            return lambda _: 1.0
        done = [trial for trial in ended if trial.state != TrialState.FAIL]
        codes = np.array([encode(self._dimensions, trial.params) for trial in [*done, *failed]])
        model = Feasibility(codes, np.arange(len(codes)) >= len(done))
        return lambda drawn: float(model(encode(self._dimensions, drawn)[None])[0])


def completed(
    sampler: BaseSampler,
    study: Study,
    trial: FrozenTrial,
    known: dict[str, BaseDistribution],
    space: Mapping[str, BaseDistribution],
) -> Parameters:
    """A proposal of `sampler` for every parameter of `space`, as Optuna's trials would complete it.

    Args:
        known: the relative search space that the sampler inferred.
    """
    drawn = sampler.sample_relative(study, trial, known)
    return {
        name: drawn[name]
        if name in drawn and _offers(distribution, drawn[name])
        else sampler.sample_independent(study, trial, name, distribution)
        for name, distribution in space.items()
    }


def accepted(
    draw: Callable[[], Parameters],
    accepts: Callable[[Parameters], bool],
    space: Mapping[str, BaseDistribution],
    generator: np.random.Generator,
) -> Parameters | None:
    """The first of `REDRAWS` draws that is accepted, else of copies of the last with ever more parameters drawn anew."""
    drawn: Parameters = {}
    for _ in range(REDRAWS):
        if accepts(drawn := draw()):
            return drawn
    for attempt in range(MUTATIONS):
        count = 1 + attempt * len(space) // MUTATIONS
        names = generator.choice(sorted(space), size=count, replace=False)
        changed = {**drawn, **{str(name): _drawn(space[str(name)], generator) for name in names}}
        if accepts(changed):
            return changed
    return None


def choices_of(distribution: BaseDistribution) -> tuple[Any, ...]:
    """The values of a discrete distribution, in its order."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution)
    return tuple(range(distribution.low, distribution.high + 1, distribution.step))


def _drawn(distribution: BaseDistribution, generator: np.random.Generator) -> Any:
    choices = choices_of(distribution)
    return choices[int(generator.integers(len(choices)))]


def _offers(distribution: BaseDistribution | None, value: Any) -> bool:
    return distribution is not None and value in choices_of(distribution)
