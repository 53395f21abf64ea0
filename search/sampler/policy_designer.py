"""`PolicyDesigner`: proposes policies by a structured surrogate and expected hypervolume improvement.

It learns how much damage every choice does (`damage_model`), counts or learns what every choice costs (`cost_model`), and
proposes the policy of greatest expected improvement among `candidates`. It needs nothing but values::

    from slimfront.search.sampler.designer import CompletedTrial, Outcome
    from slimfront.search.sampler.dimensions import search_dimension
    from slimfront.search.sampler.policy_designer import PolicyDesigner

    dimensions = [search_dimension(f"conv{index}.weight_bits", "weight_bits", (4, 8, 32), neutral=32) for index in range(3)]
    designer = PolicyDesigner(dimensions, ["quality", "measured"], seed=0)
    for number in range(8):
        [choices] = designer.suggest()
        damage = sum(4.0**-bits for bits in choices.values())  # measure your model's here
        values = (damage / 3, float(sum(choices.values())))  # accuracy drop, size
        designer.update([CompletedTrial(number, choices, Outcome.COMPLETE, values, damage)], running=[])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from threadpoolctl import ThreadpoolController

from .acquisition import DRAWS, front_rows, normal_draws, ranked
from .candidates import candidates_of, distinct
from .designer import Choices, CompletedTrial, TransferredTrial
from .dimensions import SearchDimension, decode, encode, offered_choices
from .feasibility import Odds
from .surrogate.surrogate import Counted, History, Role, Surrogate
from .trial_log import Keys, TrialLog, codes_as_keys, history_of, with_transferred
from .untried import accepted, drawn

STARTUP = 4
"""The surrogate proposes once this many finished trials have a known damage."""

JUDGED_AFTER = 10
"""Once this many trials have finished, the surrogate proposes only while it has skill."""

LEAST_SKILL = 0.1
"""The surrogate proposes while it predicts the damage of held-out trials better than their mean by this fraction (`Surrogate.skill`)."""

FULL_SKILL = 0.6
"""From this skill on the surrogate makes every proposal; below it a share is explored, lest a front be missed that only seems known."""

Accepts = Callable[[Choices], bool]
Explore = Callable[[Accepts, np.random.Generator], Choices | None]
"""A method that knows nothing of damage: returns choices that are accepted, or None where it finds none."""


class PolicyDesigner:
    """A `Designer` for models whose choices each do some damage, at some saving.

    Single-threaded: BLAS is held to one thread while it thinks. Policies that run count as if they had turned out as predicted
    (kriging believer; Ginsbourger, Le Riche & Carraro 2010), so that any number may run at once. While its surrogate does
    not predict held-out trials better than their mean does, it explores and gives the reason as `doubt`. Nothing is
    proposed twice, failed policies included, and what resembles those is proposed less often.

    Args:
        dimensions: the search space.
        roles: one per objective, 2 to 4 with a "quality" among them.
        signs: -1 for each maximised objective, else 1; by default all are minimised.
        counted: codes [n, knobs] -> what roles count; None where no role is a number.
        keys: codes -> what distinguishes policies; by default the codes do.
        reference: worst acceptable value of each objective; None takes the worst seen.
        implied: names of constraints that `reference` enforces already.
        transferred: trials of other studies, which damage and measured costs are learned from too.
        residual: whether to model what the structured mean leaves unexplained.
        may_propose: whether choices may be proposed, in addition to their not having been tried.
        seed: of all randomness, or the generator itself.

    Attributes:
        doubt: why the surrogate did not propose when it was last judged; None where it may.
    """

    def __init__(
        self,
        dimensions: Sequence[SearchDimension],
        roles: Sequence[Role],
        signs: Sequence[int] | None = None,
        *,
        counted: Counted | None = None,
        keys: Keys | None = None,
        reference: Sequence[float] | None = None,
        implied: frozenset[str] = frozenset(),
        transferred: Sequence[TransferredTrial] = (),
        residual: bool = True,
        may_propose: Accepts = lambda _: True,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        if len(roles) not in DRAWS or "quality" not in roles:
            raise ValueError(f'{len(roles)} objectives; there must be 2 to 4, with a "quality" among them')
        self.dimensions = list(dimensions)
        signs = signs or [1] * len(roles)
        self._surrogate = Surrogate(self.dimensions, roles, signs, counted, residual)
        self._keys = keys or codes_as_keys
        self._log = TrialLog(self.dimensions, self._keys, signs)
        self._reference, self._implied, self._transferred = reference, implied, tuple(transferred)
        self._may_propose = may_propose
        self._generator = np.random.default_rng(seed)
        self._threads = ThreadpoolController()
        self.doubt: str | None = None

    def update(self, completed: Sequence[CompletedTrial], running: Sequence[Choices]) -> None:
        """Learn from trials that have ended since the last update, with all that runs now."""
        self._log.update(completed, running)

    def suggest(self, count: int = 1, explore: Explore | None = None) -> list[Choices]:
        """Propose `count` points, fewer where no more are found.

        Args:
            explore: proposes where the surrogate does not; by default choices are drawn at random.
        """
        found: list[Choices] = []
        with self._threads.limit(limits=1):
            while len(found) < count and (choices := self._next(explore or self._draw)) is not None:
                found.append(choices)
                self._log.start(encode(self.dimensions, choices))
        return found

    def _next(self, explore: Explore) -> Choices | None:
        model, tried = self._log.feasibility(), self._log.tried
        odds = Odds(model, self._generator.random() if model is not None else 0.0)
        if (best := self._learned_best(odds, tried)) is not None:
            return decode(self.dimensions, best)

        def accepts(choices: Choices) -> bool:
            codes = encode(self.dimensions, choices)[None]
            return self._keys(codes)[0] not in tried and self._may_propose(choices) and odds(codes)[0] > 0

        return explore(accepts, self._generator)

    def _draw(self, accepts: Accepts, generator: np.random.Generator) -> Choices | None:
        """Choices at random."""
        offered = offered_choices(self.dimensions)
        return accepted(lambda: drawn(offered, generator), accepts, offered, generator)

    def _learned_best(self, odds: Odds, tried: set[bytes]) -> np.ndarray | None:
        """Codes of which the surrogate expects most; None where it knows too little or nothing is left."""
        history = history_of(self._log, self._surrogate, self._implied)
        if np.sum(~np.isnan(history.damage)) < STARTUP or np.isnan(history.values).any(axis=1).all():
            return None
        learned = with_transferred(history, self._transferred, self._surrogate)
        self._surrogate.fit(learned, self._log.pending)
        return self._best(history, odds, tried) if self._trusts(learned) else None

    def _trusts(self, history: History) -> bool:
        """Whether the surrogate proposes: from the tenth trial on only while it predicts trials that it has not seen.

        Before, it does where damages are measured: what is guessed of single choices holds for divergences.
        """
        if len(history.codes) < JUDGED_AFTER:
            return any(trial.damage is not None for trial in self._log.ended)
        skill, self.doubt = self._surrogate.skill(history), None
        if skill < LEAST_SKILL:
            self.doubt = f"single choices predict {max(skill, 0.0):.0%} of the damage of trials left out"
            return False
        return self._generator.random() < skill / FULL_SKILL

    def _best(self, history: History, odds: Odds, tried: set[bytes]) -> np.ndarray | None:
        """Codes of the greatest expected improvement; None where nothing is left to propose."""
        surrogate, pending, objectives = self._surrogate, self._log.pending, len(self._surrogate.roles)
        normals = normal_draws(DRAWS[objectives], objectives + 2, int(self._generator.integers(2**31)))
        reference = self._scaled_reference(history)
        plausible = replace(history, values=surrogate.sobered(history))
        rows, codes = front_rows(plausible, reference), self._log.codes
        proposed = candidates_of(surrogate, codes[rows] if len(rows) else codes, self._generator)
        proposed = distinct(proposed, self._keys, tried)
        proposed = proposed[odds(proposed) > 0]
        if not len(proposed):
            return None
        proposed = proposed[self._generator.permutation(len(proposed))]
        draws = surrogate.draws(np.concatenate([pending, proposed]), normals, self._generator)
        believed, draws = np.median(draws[:, : len(pending)], axis=0), draws[:, len(pending) :]
        front = np.concatenate([plausible.values[rows], believed[(believed < reference).all(axis=1)]])
        ordered = proposed[ranked(draws, front, reference, odds(proposed))]
        return next((codes for codes in ordered if self._may_propose(decode(self.dimensions, codes))), None)

    def _scaled_reference(self, history: History) -> np.ndarray:
        if self._reference is not None:
            return self._surrogate.scaled(np.array([self._reference], dtype=float))[0]
        return np.nanmax(history.values, axis=0) + 1e-9
