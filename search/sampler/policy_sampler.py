"""`PolicySampler`: an Optuna sampler for studies whose knobs each do some damage to a model, at some saving.

It learns how much damage every choice does (`damage_model`), counts or learns what every choice costs (`cost_model`), and
proposes the policy of greatest expected hypervolume improvement. It works in any study of 2 to 4 objectives over discrete
parameters, conditional ones too; best in one that records the KL divergence to the uncompressed outputs as the trial
attribute "kl"::

    import optuna
    from slimfront.search.sampler.policy_sampler import PolicySampler

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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from .acquisition import expected_improvement, normal_draws
from .candidates import CROSSED, MUTANTS, TRADE_OFFS, cross, descend, distinct, mutate
from .dimensions import RECOVERY_KIND, SearchDimension, decode, encode, most_below, search_dimension
from .feasibility import Feasibility, failures
from .surrogate.surrogate import Counted, History, Role, Surrogate, damage_of_drop, log_damage
from .untried import accepted, choices_of, completed

DAMAGE = "kl"
"""Trial attribute that holds the KL divergence to the uncompressed outputs, in nats."""

STOPPED = "stopped early"
"""Constraint that a trial breaks which was stopped before its recovery ended: other samplers keep away from it."""

STOPPED_EPOCHS = "stopped_epochs"
"""Trial attribute: epochs of recovery behind the divergence of a trial that was stopped."""

STOPPED_VALUES = "stopped_values"
"""Trial attribute: objectives of a trial that was stopped, as they were then."""

FALLBACK = "sampler_fallback"
"""Study attribute that says why TPE proposes instead; None once it no longer does."""

STARTUP = 4
"""Finished trials with a known damage before the surrogate is asked."""

MOST_CHOICES = 64
JUDGED_AFTER = 10
"""Finished trials from which on the surrogate proposes only while it has skill."""

LEAST_SKILL = 0.1
"""How much better than their mean the surrogate must predict the damage of trials left out (`Surrogate.skill`)."""

FULL_SKILL = 0.6
"""Skill from which on the surrogate makes every proposal; below, TPE makes a share of them, lest a front be missed that only seems known."""

DRAWS = {2: 64, 3: 32, 4: 16}
SHORTLIST = {2: 900, 3: 300, 4: 100}
PERTURBED = 3


@dataclass(frozen=True)
class TransferredTrial:
    """A trial of another study of the same model.

    Attributes:
        parameters: one value per knob.
        kl: divergence from the uncompressed outputs, in nats; None where it is not known.
        values: per objective, what also holds here; None where nothing does.
    """

    parameters: Mapping[str, Any]
    kl: float | None
    values: tuple[float | None, ...]


class PolicySampler(BaseSampler):
    """Proposes policies by a structured surrogate and expected hypervolume improvement.

    Single-threaded: BLAS is held to one thread while it thinks. Trials that run count as if they had turned out as
    predicted (kriging believer; Ginsbourger, Le Riche & Carraro 2010), so that any number of workers may ask. Where its
    assumptions do not hold, and while its surrogate does not predict trials left out better than their mean does, it warns
    once, notes why as the study attribute `FALLBACK`, and leaves proposing to TPE. Nothing is proposed twice, failed policies
    included, and what resembles them less often.

    Args:
        roles: one per objective; without a "quality" among them TPE proposes.
        dimensions: the knobs; None reads them from the study's trials.
        neutral: parameter -> choice that does no damage, where knobs are read from trials.
        counted: codes [n, knobs] -> what roles count; None where no role is a number.
        keys: codes -> what tells policies apart; by default the codes do.
        reference: worst acceptable value of each objective; None takes the worst seen.
        implied: names of constraints that `reference` enforces already.
        earlier: trials of other studies that damage and measured costs are learned from too.
        residual: whether to model what the structured mean leaves unexplained.
        may_propose: whether parameters may be proposed, in addition to their not having been tried in the study.
        seed: of all randomness.

    Attributes:
        fallback: why TPE proposes; None where it does not.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        dimensions: Sequence[SearchDimension] | None = None,
        neutral: Mapping[str, Any] | None = None,
        counted: Counted | None = None,
        keys: Callable[[np.ndarray], list[bytes]] | None = None,
        reference: Sequence[float] | None = None,
        implied: frozenset[str] = frozenset(),
        earlier: Sequence[TransferredTrial] = (),
        residual: bool = True,
        may_propose: Callable[[Mapping[str, Any]], bool] = lambda _: True,
        seed: int | None = None,
    ) -> None:
        if any(isinstance(role, int) for role in roles) and (counted is None or dimensions is None):
            raise ValueError("a counted role needs `counted` and the `dimensions` it reads")
        self._roles, self._neutral, self._counted = tuple(roles), dict(neutral or {}), counted
        self._dimensions = list(dimensions) if dimensions is not None else None
        self._keys = keys or (lambda codes: [row.tobytes() for row in codes])
        self._reference, self._implied, self._residual = reference, implied | {STOPPED}, residual
        self._earlier = tuple(earlier)
        self._generator = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._tpe = TPESampler(seed=seed, multivariate=True, n_startup_trials=10, constant_liar=True)
        self._surrogate: Surrogate | None = None
        self._codes: dict[int, np.ndarray] = {}
        self._threads = ThreadpoolController()
        self._may_propose = may_propose
        self._feasibility: Feasibility | None = None
        self._tried: set[bytes] = set()
        self._least_likely = 0.0
        self._is_unfit = self._has_warned = False
        self.fallback: str | None = None

    def learned_constraints(self, trial: FrozenTrial) -> set[str]:
        """Names of the constraints that are learned from a trial, each as a regression on the choices."""
        return set(trial.constraints) - self._implied

    def reseed_rng(self) -> None:
        self._generator = np.random.default_rng()
        self._random.reseed_rng()
        self._tpe.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters of all finished trials, those of some branches only too."""
        if not self._is_unfit and (reason := self._unfit(study)) is not None:
            self._is_unfit = True
            self._leave_to_tpe(study, reason)
        if self._is_unfit:
            return self._tpe.infer_relative_search_space(study, trial)
        return _distributions(study)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._is_unfit:
            return self._tpe.sample_relative(study, trial, search_space)
        if not search_space or "fixed_params" in trial.system_attrs:  # enqueued: what is proposed would not be read
            return {}
        with self._threads.limit(limits=1):
            surrogate = self._surrogate_of(study, search_space)
            self._look_back(study, surrogate)
            proposed = self._propose(study, surrogate)
            return proposed or self._explore(study, trial, search_space, surrogate)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._tpe if self.fallback is not None else self._random
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _look_back(self, study: Study, surrogate: Surrogate) -> None:
        """Note what was tried, and learn from what failed."""
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.params]
        ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        running, failed = [trial for trial in trials if trial.state == TrialState.RUNNING], failures(trials)
        self._ended, self._pending = ended, self._encoded(running, surrogate)
        codes = self._encoded([*ended, *failed], surrogate)
        self._tried = set(self._keys(np.concatenate([codes, self._pending])))
        self._feasibility = Feasibility(codes, np.arange(len(codes)) >= len(ended)) if failed else None
        self._least_likely = self._generator.random() if failed else 0.0

    def _propose(self, study: Study, surrogate: Surrogate) -> dict[str, Any]:
        """What the surrogate expects most of; nothing where it knows too little or nothing is left."""
        history = self._history(surrogate)
        if np.sum(~np.isnan(history.damage)) < STARTUP or np.isnan(history.values).any(axis=1).all():
            return {}
        learned = self._with_earlier(history, surrogate)
        surrogate.fit(learned, self._pending)
        if not self._trusts(study, surrogate, learned):
            return {}
        best = self._best(surrogate, history, self._pending)
        return {} if best is None else decode(surrogate.dimensions, best)

    def _explore(
        self, study: Study, trial: FrozenTrial, space: Mapping[str, BaseDistribution], surrogate: Surrogate
    ) -> dict[str, Any]:
        """What TPE proposes, after its random start, of what was not tried and is not likely to fail."""
        known = self._tpe.infer_relative_search_space(study, trial)

        def accepts(drawn: Mapping[str, Any]) -> bool:
            codes = encode(surrogate.dimensions, drawn)[None]
            is_new = self._keys(codes)[0] not in self._tried and self._may_propose(drawn)
            return is_new and self._may_end(codes)[0] > 0

        return (
            accepted(partial(completed, self._tpe, study, trial, known, space), accepts, space, self._generator) or {}
        )

    def _may_end(self, codes: np.ndarray) -> np.ndarray:
        """How likely policies of codes [n, knobs] are to come to their end [n].

        It is 0 in as many trials as they are likely to fail, for all alike: a multitude of hopeless ones would always hold one more
        that seems worth the risk.
        """
        if self._feasibility is None:
            return np.ones(len(codes))
        likely = self._feasibility(codes)
        return np.where(likely >= self._least_likely, likely, 0.0)

    def _trusts(self, study: Study, surrogate: Surrogate, history: History) -> bool:
        """Whether the surrogate proposes: from the tenth trial on only while it predicts trials that it has not seen.

        Before, it does where the damage is measured: what is guessed of single choices holds for divergences.
        """
        if len(history.codes) < JUDGED_AFTER:
            return any(DAMAGE in trial.user_attrs for trial in self._ended)
        skill = surrogate.skill(history)
        if skill < LEAST_SKILL:
            self._leave_to_tpe(study, f"single choices predict {max(skill, 0.0):.0%} of the damage of trials left out")
        elif self.fallback is not None:
            self.fallback = None
            study.set_user_attr(FALLBACK, None)
        return skill >= LEAST_SKILL and self._generator.random() < skill / FULL_SKILL

    def _best(self, surrogate: Surrogate, history: History, pending: np.ndarray) -> np.ndarray | None:
        """Codes of the greatest expected improvement; None where nothing is left to propose."""
        objectives = len(self._roles)
        normals = normal_draws(DRAWS[objectives], objectives + 2, int(self._generator.integers(2**31)))
        reference = self._scaled_reference(surrogate, history)
        front, parents = self._front(replace(history, values=surrogate.sobered(history)), reference)
        candidates = distinct(self._candidates(surrogate, parents), self._keys, self._tried)
        candidates = candidates[self._may_end(candidates) > 0]
        if not len(candidates):
            return None
        candidates = candidates[self._generator.permutation(len(candidates))]
        drawn = surrogate.draws(np.concatenate([pending, candidates]), normals, self._generator)
        believed, drawn = np.median(drawn[:, : len(pending)], axis=0), drawn[:, len(pending) :]
        front = np.concatenate([front, believed[(believed < reference).all(axis=1)]])
        if len(candidates) > SHORTLIST[objectives]:
            optimistic = np.sort(drawn, axis=0)[None, len(drawn) // 6]  # a standard deviation better than the median
            gains = expected_improvement(optimistic, front, reference) * self._may_end(candidates)
            shortlist = np.argsort(-gains, kind="stable")[: SHORTLIST[objectives]]
            candidates, drawn = candidates[shortlist], drawn[:, shortlist]
        gains = expected_improvement(drawn, front, reference) * self._may_end(candidates)
        ordered = candidates[np.argsort(-gains, kind="stable")]
        return next((codes for codes in ordered if self._may_propose(decode(surrogate.dimensions, codes))), None)

    def _candidates(self, surrogate: Surrogate, parents: np.ndarray) -> np.ndarray:
        sizes = np.array([knob.offered or len(knob.choices) for knob in surrogate.dimensions])
        chains = len(TRADE_OFFS) * PERTURBED
        shifts = surrogate.shifts(PERTURBED, self._generator)
        shifts[0] = 0
        model = np.repeat(np.arange(PERTURBED), len(TRADE_OFFS))
        shares = self._generator.dirichlet(np.ones(len(self._roles)), chains)
        shares /= shares[:, [role != "quality" for role in self._roles]].sum(axis=1, keepdims=True)
        weights = np.tile(TRADE_OFFS, PERTURBED)[:, None] * shares

        def score(codes: np.ndarray, knob: int) -> np.ndarray:
            size = int(sizes[knob])
            options = np.repeat(codes, size, axis=0)
            options[:, knob] = np.tile(np.arange(size), len(codes))
            costs = surrogate.log_cost(options, np.repeat(weights, size, axis=0))
            return surrogate.mean.predict_options(codes, knob, size, shifts, model) + costs.reshape(-1, size)

        start = parents[self._generator.integers(len(parents), size=chains)]
        return np.concatenate([
            descend(start, sizes, score, self._generator),
            mutate(parents, sizes, MUTANTS, self._generator),
            cross(parents, CROSSED, self._generator),
        ])  # fmt: skip

    def _front(self, history: History, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of the acceptable trials, and codes that new policies descend from: theirs, else everyone's."""
        judged = np.stack([v for n, v in history.violations.items()], axis=1) if history.violations else None
        fine = (history.values < reference).all(axis=1)
        if judged is not None:
            fine &= ~(judged > 0).any(axis=1)
        values, codes = history.values[fine], self._seen[fine]
        if not len(values):
            return values, self._seen
        dominated = [bool(((values <= v).all(axis=1) & (values < v).any(axis=1)).any()) for v in values]
        return values[~np.array(dominated)], codes[~np.array(dominated)]

    def _scaled_reference(self, surrogate: Surrogate, history: History) -> np.ndarray:
        if self._reference is not None:
            return surrogate.scaled(np.array([self._reference], dtype=float))[0]
        return np.nanmax(history.values, axis=0) + 1e-9

    def _history(self, surrogate: Surrogate) -> History:
        ended = self._ended
        raw = np.array([self._told(trial) for trial in ended], dtype=float)
        values = surrogate.scaled(raw.reshape(-1, len(self._roles)))
        constraints = {name for trial in ended for name in self.learned_constraints(trial)}
        return History(
            self._as_trained(ended, surrogate),
            self._damage(ended, values),
            values,
            {name: np.array([trial.constraints.get(name, np.nan) for trial in ended]) for name in sorted(constraints)},
        )

    def _told(self, trial: FrozenTrial) -> Sequence[float]:
        """A trial's objectives; of one that was stopped what recovery would not have changed."""
        if trial.state == TrialState.COMPLETE:
            return trial.values
        known = trial.user_attrs.get(STOPPED_VALUES, [np.nan] * len(self._roles))
        return [np.nan if role == "quality" else value for role, value in zip(self._roles, known, strict=True)]

    def _encoded(self, trials: Sequence[FrozenTrial], surrogate: Surrogate) -> np.ndarray:
        """Codes [trials, knobs], each trial's found once."""
        for trial in trials:
            if trial.number not in self._codes or trial.state == TrialState.RUNNING:  # it may still ask for more
                self._codes[trial.number] = encode(surrogate.dimensions, trial.params)
        codes = [self._codes[trial.number] for trial in trials]
        return np.array(codes, dtype=int).reshape(-1, len(surrogate.dimensions))

    def _as_trained(self, trials: Sequence[FrozenTrial], surrogate: Surrogate) -> np.ndarray:
        """Codes [trials, knobs] that damages are learned at: of a trial that was stopped with as much recovery as it had."""
        self._seen = self._encoded(trials, surrogate)
        codes = self._seen.copy()
        for index, knob in enumerate(surrogate.dimensions):
            if knob.kind == RECOVERY_KIND:
                for row, trial in enumerate(trials):
                    if (epochs := trial.user_attrs.get(STOPPED_EPOCHS)) is not None:
                        codes[row, index] = most_below(knob.choices, epochs)
        return codes

    def _with_earlier(self, history: History, surrogate: Surrogate) -> History:
        """`history` and what earlier studies found: they teach, but are neither on the front nor seen."""
        if not self._earlier:
            return history
        codes = np.array([encode(surrogate.dimensions, trial.parameters) for trial in self._earlier])
        damage = np.array([np.nan if trial.kl is None else log_damage(trial.kl) for trial in self._earlier])
        values = surrogate.scaled(np.array([trial.values for trial in self._earlier], dtype=float))
        unknown = np.full(len(codes), np.nan)
        return History(
            np.concatenate([history.codes, codes]),
            np.concatenate([history.damage, damage]),
            np.concatenate([history.values, values]),
            {name: np.concatenate([judged, unknown]) for name, judged in history.violations.items()},
        )

    def _damage(self, trials: Sequence[FrozenTrial], values: np.ndarray) -> np.ndarray:
        """log(KL + 1e-3) where trials noted it, else guessed from how far the quality fell behind the best seen."""
        quality = values[:, self._roles.index("quality")]
        best = np.nanmin(quality, initial=np.inf)
        return np.array([
            log_damage(trial.user_attrs[DAMAGE]) if DAMAGE in trial.user_attrs
            else damage_of_drop(fallen - best) if np.isfinite(fallen) else np.nan
            for trial, fallen in zip(trials, quality, strict=True)
        ])  # fmt: skip

    def _surrogate_of(self, study: Study, space: Mapping[str, BaseDistribution]) -> Surrogate:
        if self._surrogate is None or (
            self._dimensions is None and {knob.name for knob in self._surrogate.dimensions} != set(space)
        ):
            knobs = self._dimensions or [
                search_dimension(name, name.rsplit(".", 1)[-1], choices_of(distribution), self._neutral.get(name))
                for name, distribution in space.items()
            ]
            signs = [-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in study.directions]
            self._codes = {}
            self._surrogate = Surrogate(knobs, self._roles, signs, self._counted, self._residual)
        return self._surrogate

    def _unfit(self, study: Study) -> str | None:
        """Which assumption the study breaks, None where it breaks none."""
        if len(study.directions) != len(self._roles) or len(self._roles) not in DRAWS:
            return f"{len(study.directions)} objectives for {len(self._roles)} roles; it takes 2 to 4"
        if "quality" not in self._roles:
            return "no objective follows the damage"
        for name, distribution in _distributions(study).items():
            if not _is_discrete(distribution):
                return f"parameter {name} is not discrete, or has more than {MOST_CHOICES} choices"
        return None

    def _leave_to_tpe(self, study: Study, reason: str) -> None:
        """Say that TPE proposes from now on, each time that it takes over; warn the first time."""
        if self.fallback is None:
            self.fallback = f"TPE proposes in place of the policy sampler: {reason}"
            study.set_user_attr(FALLBACK, self.fallback)
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"the policy sampler leaves proposing to TPE: {reason}", stacklevel=2)


def _distributions(study: Study) -> dict[str, BaseDistribution]:
    """All parameters that any trial has had, by name."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return dict(sorted({name: d for trial in ended for name, d in trial.distributions.items()}.items()))


def _is_discrete(distribution: BaseDistribution) -> bool:
    return (
        isinstance(distribution, (CategoricalDistribution, IntDistribution))
        and not getattr(distribution, "log", False)
        and len(choices_of(distribution)) <= MOST_CHOICES
    )
