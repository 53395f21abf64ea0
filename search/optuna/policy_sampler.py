"""`PolicySampler`: an Optuna sampler for studies whose knobs each do some damage to a model, at some saving.

It is the adapter of `PolicyDesigner`. It works in any study of 2 to 4 objectives over discrete parameters, conditional ones
too; best in one that records the KL divergence to the uncompressed outputs as the trial attribute "kl"::

    import optuna
    from slimfront.search.optuna.policy_sampler import PolicySampler

    def objective(trial):
        bits = trial.suggest_categorical("conv1.weight_bits", [4, 8, 32])
        removed = trial.suggest_categorical("conv1.channels", [0.0, 0.25, 0.5])
        kl = 4.0**-bits + 0.1 * removed**2  # measure your model's here
        trial.set_user_attr("kl", kl)
        return kl / 3, bits * (1 - removed)  # accuracy drop, size

    sampler = PolicySampler(["quality", "measured"], neutral={"conv1.weight_bits": 32, "conv1.channels": 0.0})
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=8)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from ..sampler.acquisition import DRAWS
from ..sampler.designer import Choices, TransferredTrial
from ..sampler.dimensions import SearchDimension, search_dimension
from ..sampler.policy_designer import PolicyDesigner
from ..sampler.surrogate.surrogate import Counted, Role
from ..sampler.trial_log import Keys
from ..sampler.untried import accepted
from .attributes import FALLBACK, STOPPED
from .distributions import MOST_CHOICES, Distributions, choices_of, completed, is_discrete
from .trial_reader import SeenDistributions, TrialReader


class PolicySampler(BaseSampler):
    """Proposes what a `PolicyDesigner` suggests, and leaves exploring to TPE.

    Where the designer's assumptions do not hold, and while it doubts its surrogate, the sampler warns once, notes why as the
    study attribute `FALLBACK`, and leaves proposing to TPE. Nothing is proposed twice.

    Args:
        roles: one per objective; without a "quality" among them TPE proposes.
        dimensions: the knobs; None reads them from the study's trials.
        neutral: parameter -> choice that does no damage, where knobs are read from trials.
        counted, keys, reference, implied, transferred, residual, may_propose: as for `PolicyDesigner`.
        seed: of all randomness.

    Attributes:
        fallback: why TPE proposes; None where it does not.
        implied: names of all constraints that are not learned.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        dimensions: Sequence[SearchDimension] | None = None,
        neutral: Mapping[str, Any] | None = None,
        counted: Counted | None = None,
        keys: Keys | None = None,
        reference: Sequence[float] | None = None,
        implied: frozenset[str] = frozenset(),
        transferred: Sequence[TransferredTrial] = (),
        residual: bool = True,
        may_propose: Callable[[Choices], bool] = lambda _: True,
        seed: int | None = None,
    ) -> None:
        if any(isinstance(role, int) for role in roles) and (counted is None or dimensions is None):
            raise ValueError("a counted role needs `counted` and the `dimensions` it reads")
        self._roles, self._neutral = tuple(roles), dict(neutral or {})
        self._dimensions = list(dimensions) if dimensions is not None else None
        self.implied = implied | {STOPPED}
        self._make = partial(
            PolicyDesigner, counted=counted, keys=keys, reference=reference, implied=self.implied,
            transferred=transferred, residual=residual, may_propose=may_propose,
        )  # fmt: skip
        self._generator = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._tpe = TPESampler(seed=seed, multivariate=True, n_startup_trials=10, constant_liar=True)
        self._designer: PolicyDesigner | None = None
        self._reader, self._seen = TrialReader(), SeenDistributions()
        self._is_unfit = self._has_warned = False
        self.fallback: str | None = None

    def reseed_rng(self) -> None:
        self._generator.bit_generator.state = np.random.default_rng().bit_generator.state
        self._random.reseed_rng()
        self._tpe.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Distributions:
        """The parameters of all finished trials, those of some branches only too."""
        if not self._is_unfit and (reason := self._unfit(study)) is not None:
            self._is_unfit = True
            self._leave_to_tpe(study, reason)
        if self._is_unfit:
            return self._tpe.infer_relative_search_space(study, trial)
        return self._seen.of(study)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        if self._is_unfit:
            return self._tpe.sample_relative(study, trial, search_space)
        if not search_space or "fixed_params" in trial.system_attrs:  # enqueued: what is proposed would not be read
            return {}
        designer = self._designer_of(study, search_space)
        designer.update(*self._reader.read(study))
        suggested = designer.suggest(explore=partial(self._explore, study, trial, search_space))
        self._note_doubt(study, designer.doubt)
        return dict(suggested[0]) if suggested else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._tpe if self.fallback is not None else self._random
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _designer_of(self, study: Study, space: Distributions) -> PolicyDesigner:
        """The designer, made anew where the study's trials have other parameters than before."""
        former = self._designer
        if former is None or (self._dimensions is None and {knob.name for knob in former.dimensions} != set(space)):
            knobs = self._dimensions or [
                search_dimension(name, name.rsplit(".", 1)[-1], choices_of(distribution), self._neutral.get(name))
                for name, distribution in space.items()
            ]
            signs = [-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in study.directions]
            self._designer = self._make(knobs, self._roles, signs, seed=self._generator)
            self._designer.doubt = former.doubt if former is not None else None
            self._reader = TrialReader()
            return self._designer
        return former

    def _explore(
        self,
        study: Study,
        trial: FrozenTrial,
        space: Distributions,
        accepts: Callable[[Choices], bool],
        generator: np.random.Generator,
    ) -> Choices | None:
        """What TPE proposes, after its random start, of what is accepted."""
        known = self._tpe.infer_relative_search_space(study, trial)
        offered = {name: choices_of(distribution) for name, distribution in space.items()}
        return accepted(partial(completed, self._tpe, study, trial, known, space), accepts, offered, generator)

    def _unfit(self, study: Study) -> str | None:
        """Which assumption the study breaks, None where it breaks none."""
        if len(study.directions) != len(self._roles) or len(self._roles) not in DRAWS:
            return f"{len(study.directions)} objectives for {len(self._roles)} roles; it takes 2 to 4"
        if "quality" not in self._roles:
            return "no objective follows the damage"
        for name, distribution in self._seen.of(study).items():
            if not is_discrete(distribution):
                return f"parameter {name} is not discrete, or has more than {MOST_CHOICES} choices"
        return None

    def _note_doubt(self, study: Study, doubt: str | None) -> None:
        """Say that TPE proposes while the designer doubts its surrogate, and that it no longer does."""
        if doubt is not None:
            self._leave_to_tpe(study, doubt)
        elif self.fallback is not None:
            self.fallback = None
            study.set_user_attr(FALLBACK, None)

    def _leave_to_tpe(self, study: Study, reason: str) -> None:
        """Say that TPE proposes from now on, each time that it takes over; warn the first time."""
        if self.fallback is None:
            self.fallback = f"TPE proposes in place of the policy sampler: {reason}"
            study.set_user_attr(FALLBACK, self.fallback)
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"the policy sampler leaves proposing to TPE: {reason}", stacklevel=2)
