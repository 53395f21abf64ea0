"""`PolicySampler`: an Optuna sampler for studies whose knobs each do some damage to a model, at some saving.

It learns how much damage every choice does (`damage_model`), counts or learns what every choice costs (`cost_model`), and
proposes the policy of greatest expected hypervolume improvement. It works in any study of 2 to 4 objectives over discrete
parameters, conditional ones too, that records the KL divergence to the uncompressed outputs as the trial attribute "kl"::

    sampler = PolicySampler(["quality", "measured"], neutral={"conv1.weight_bits": 32, "conv1.channels": 0.0})
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from .acquisition import expected_improvement, normal_draws
from .candidates import CROSSED, MUTANTS, TRADE_OFFS, cross, descend, distinct, mutate
from .coordinates import HEALING, Coordinate, coordinate, decode, encode, most_below
from .surrogate import Counted, History, Role, Surrogate, damage_of_drop, log_damage

DAMAGE = "kl"
"""Trial attribute that holds the KL divergence to the uncompressed outputs, in nats."""

STOPPED = "stopped early"
"""Constraint that a trial breaks which was stopped before its recovery ended: other samplers keep away from it."""

STOPPED_EPOCHS = "stopped_epochs"
"""Trial attribute: epochs of recovery behind the divergence of a trial that was stopped."""

STOPPED_VALUES = "stopped_values"
"""Trial attribute: objectives of a trial that was stopped, as they were then."""

FALLBACK = "sampler_fallback"
"""Study attribute that says why TPE proposes instead."""

STARTUP = 4
"""Finished trials with a known damage before the surrogate is asked."""

MOST_CHOICES = 64
JUDGED_AFTER = 40
LEAST_EXPLAINED = 0.1
DRAWS = {2: 64, 3: 32, 4: 16}
SHORTLIST = {2: 900, 3: 300, 4: 100}
PERTURBED = 3


@dataclass(frozen=True)
class Earlier:
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
    assumptions do not hold it warns, notes why as the study attribute `FALLBACK`, and leaves proposing to TPE.

    Args:
        roles: one per objective; without a "quality" among them TPE proposes.
        coordinates: the knobs; None reads them from the study's trials.
        neutral: parameter -> choice that does no damage, where knobs are read from trials.
        counted: codes [n, knobs] -> what roles count; None where no role is a number.
        keys: codes -> what tells policies apart; by default the codes do.
        reference: worst acceptable value of each objective; None takes the worst seen.
        implied: names of constraints that `reference` enforces already.
        earlier: trials of other studies that damage and measured costs are learned from too.
        residual: whether to model what the structured mean leaves unexplained.
        seed: of all randomness.

    Attributes:
        fallback: why TPE proposes; None where it does not.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        coordinates: Sequence[Coordinate] | None = None,
        neutral: Mapping[str, Any] | None = None,
        counted: Counted | None = None,
        keys: Callable[[np.ndarray], list[bytes]] | None = None,
        reference: Sequence[float] | None = None,
        implied: frozenset[str] = frozenset(),
        earlier: Sequence[Earlier] = (),
        residual: bool = True,
        seed: int | None = None,
    ) -> None:
        if any(isinstance(role, int) for role in roles) and (counted is None or coordinates is None):
            raise ValueError("a counted role needs `counted` and the `coordinates` it reads")
        self._roles, self._neutral, self._counted = tuple(roles), dict(neutral or {}), counted
        self._coordinates = list(coordinates) if coordinates is not None else None
        self._keys = keys or (lambda codes: [row.tobytes() for row in codes])
        self._reference, self._implied, self._residual = reference, implied | {STOPPED}, residual
        self._earlier = tuple(earlier)
        self._generator = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._tpe = TPESampler(seed=seed, multivariate=True, n_startup_trials=10, constant_liar=True)
        self._surrogate: Surrogate | None = None
        self._codes: dict[int, np.ndarray] = {}
        self._threads = ThreadpoolController()
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
        if self.fallback is None and (reason := self._unfit(study)) is not None:
            self._give_up(study, reason)
        if self.fallback is not None:
            return self._tpe.infer_relative_search_space(study, trial)
        return _distributions(study)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self.fallback is not None:
            return self._tpe.sample_relative(study, trial, search_space)
        if not search_space or "fixed_params" in trial.system_attrs:  # enqueued: what is proposed would not be read
            return {}
        with self._threads.limit(limits=1):
            return self._propose(study, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._tpe if self.fallback is not None else self._random
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, study: Study, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        surrogate = self._surrogate_of(study, space)
        history = self._history(study, surrogate)
        if np.sum(~np.isnan(history.damage)) < STARTUP or np.isnan(history.values).any(axis=1).all():
            return {}
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        pending = self._encoded([trial for trial in running if trial.params], surrogate)
        surrogate.fit(self._with_earlier(history, surrogate), pending)
        if len(history.codes) >= JUDGED_AFTER and surrogate.explained < LEAST_EXPLAINED:
            self._give_up(study, f"single choices explain {surrogate.explained:.0%} of the damage")
            return {}
        best = self._best(surrogate, history, pending)
        proposed = {} if best is None else decode(surrogate.coordinates, best)
        return {name: value for name, value in proposed.items() if name in space}

    def _best(self, surrogate: Surrogate, history: History, pending: np.ndarray) -> np.ndarray | None:
        """Codes of the greatest expected improvement; None where nothing is left to propose."""
        objectives = len(self._roles)
        normals = normal_draws(DRAWS[objectives], objectives + 2, int(self._generator.integers(2**31)))
        reference = self._scaled_reference(surrogate, history)
        front, parents = self._front(replace(history, values=surrogate.sobered(history)), reference)
        seen = set(self._keys(np.concatenate([self._seen, pending])))
        candidates = distinct(self._candidates(surrogate, parents), self._keys, seen)
        if not len(candidates):
            return None
        candidates = candidates[self._generator.permutation(len(candidates))]
        drawn = surrogate.draws(np.concatenate([pending, candidates]), normals, self._generator)
        believed, drawn = np.median(drawn[:, : len(pending)], axis=0), drawn[:, len(pending) :]
        front = np.concatenate([front, believed[(believed < reference).all(axis=1)]])
        if len(candidates) > SHORTLIST[objectives]:
            optimistic = np.sort(drawn, axis=0)[None, len(drawn) // 6]  # a standard deviation better than the median
            gains = expected_improvement(optimistic, front, reference)
            shortlist = np.argsort(-gains, kind="stable")[: SHORTLIST[objectives]]
            candidates, drawn = candidates[shortlist], drawn[:, shortlist]
        return candidates[int(expected_improvement(drawn, front, reference).argmax())]

    def _candidates(self, surrogate: Surrogate, parents: np.ndarray) -> np.ndarray:
        sizes = np.array([knob.offered or len(knob.choices) for knob in surrogate.coordinates])
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

    def _history(self, study: Study, surrogate: Surrogate) -> History:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        ended = [trial for trial in ended if trial.params]
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
                self._codes[trial.number] = encode(surrogate.coordinates, trial.params)
        codes = [self._codes[trial.number] for trial in trials]
        return np.array(codes, dtype=int).reshape(-1, len(surrogate.coordinates))

    def _as_trained(self, trials: Sequence[FrozenTrial], surrogate: Surrogate) -> np.ndarray:
        """Codes [trials, knobs] that damages are learned at: of a trial that was stopped with as much recovery as it had."""
        self._seen = self._encoded(trials, surrogate)
        codes = self._seen.copy()
        for index, knob in enumerate(surrogate.coordinates):
            if knob.kind == HEALING:
                for row, trial in enumerate(trials):
                    if (epochs := trial.user_attrs.get(STOPPED_EPOCHS)) is not None:
                        codes[row, index] = most_below(knob.choices, epochs)
        return codes

    def _with_earlier(self, history: History, surrogate: Surrogate) -> History:
        """`history` and what earlier studies found: they teach, but are neither on the front nor seen."""
        if not self._earlier:
            return history
        codes = np.array([encode(surrogate.coordinates, trial.parameters) for trial in self._earlier])
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
            self._coordinates is None and {knob.name for knob in self._surrogate.coordinates} != set(space)
        ):
            knobs = self._coordinates or [
                coordinate(name, name.rsplit(".", 1)[-1], _choices(distribution), self._neutral.get(name))
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

    def _give_up(self, study: Study, reason: str) -> None:
        self.fallback = f"TPE proposes in place of the policy sampler: {reason}"
        study.set_user_attr(FALLBACK, self.fallback)
        warnings.warn(f"the policy sampler leaves proposing to TPE: {reason}", stacklevel=2)


def _distributions(study: Study) -> dict[str, BaseDistribution]:
    """All parameters that any trial has had, by name."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return dict(sorted({name: d for trial in ended for name, d in trial.distributions.items()}.items()))


def _is_discrete(distribution: BaseDistribution) -> bool:
    return (
        isinstance(distribution, (CategoricalDistribution, IntDistribution))
        and not getattr(distribution, "log", False)
        and len(_choices(distribution)) <= MOST_CHOICES
    )


def _choices(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution)
    return tuple(range(distribution.low, distribution.high + 1, distribution.step))
