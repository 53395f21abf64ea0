"""The sampler a study file names, told what the space and the target's costs are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from ...core.metrics import METRICS, is_quality
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.policies.policy import Choice, Policy
from ...spaces.space import Space
from ...studies.analysis.front import Objective, reference_point
from ...studies.study_file.constraint import Constraint
from ...studies.study_file.spec import StudySpec
from ..trials.prepared_study import PreparedStudy
from .dimensions import RECOVERY_KIND, SearchDimension, decode, encode, recovery_dimension, search_dimension
from .greedy_path import path_policies
from .policy_sampler import PolicySampler, TransferredTrial
from .surrogate.analytic_cost import COUNTED, OF_MACHINES, AnalyticCost
from .surrogate.surrogate import Role
from .untried import Untried, UntriedSampler

KnownDamage = Mapping[str, Mapping[Choice, float]]
"""Knob -> choice -> nats that choice does alone."""


def make_sampler(
    prepared: PreparedStudy,
    baseline: Mapping[str, float],
    trials_so_far: int,
    earlier: Sequence[TransferredTrial] = (),
    known: KnownDamage | None = None,
    untried: Untried | None = None,
) -> BaseSampler:
    """The study's sampler. Its seed depends on how far the study is: the same one would propose the same trials again.

    Args:
        baseline: metric -> value of the uncompressed model.
        earlier: trials of other studies; only the policy sampler learns from them.
        known: damage of single choices, which it starts from.
        untried: says what may be proposed; without, any policy may.
    """
    spec = prepared.spec
    digest = hashlib.sha256(f"{spec.seed}/{trials_so_far}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    sampler = _plain_sampler(spec, seed) or _policy_sampler(prepared, baseline, earlier, known, untried, seed)
    if untried is None:
        return sampler
    learns = not isinstance(sampler, PolicySampler)
    return UntriedSampler(sampler, space_dimensions(prepared.space), untried, seed, learns_failures=learns)


def _plain_sampler(spec: StudySpec, seed: int) -> BaseSampler | None:
    """Optuna's own sampler that a study names; None where it names the policy sampler."""
    if spec.sampler == "nsgaii":
        return NSGAIISampler(seed=seed, population_size=20)
    if spec.sampler == "random":
        return RandomSampler(seed=seed)
    if spec.sampler == "tpe":
        return TPESampler(seed=seed, multivariate=True, constant_liar=spec.workers > 1, n_startup_trials=10)
    return None


def _policy_sampler(
    prepared: PreparedStudy,
    baseline: Mapping[str, float],
    earlier: Sequence[TransferredTrial],
    known: KnownDamage | None,
    untried: Untried | None,
    seed: int,
) -> PolicySampler:
    spec, cost = prepared.spec, cost_of(prepared)
    # Optuna reads the dashboard's list, in which a trial that was stopped has one more, as constraints named by their place.
    copied = map(str, range(len(spec.constraints) + 1))
    return PolicySampler(
        [role_of(name, cost.is_exact) for name in spec.objectives],
        dimensions=learned_dimensions(prepared, known),
        counted=cost,
        keys=cost.keys if cost.is_exact else None,
        reference=worst_corner(baseline, spec.objectives, spec.constraints),
        implied=frozenset({*copied, *(str(c) for c in spec.constraints if c.metric in spec.objectives)}),
        earlier=earlier,
        may_propose=untried.__contains__ if untried is not None else lambda _: True,
        seed=seed,
    )


def cost_of(prepared: PreparedStudy) -> AnalyticCost:
    """What is counted of the points of a prepared study's space."""
    workload = prepared.context.workload
    return AnalyticCost(prepared.space, prepared.layers, workload.model, workload.example_input)


def space_dimensions(space: Space, known: KnownDamage | None = None) -> list[SearchDimension]:
    """The knobs of a space as the policy sampler sees them, in their order."""
    known = known or {}
    return [
        search_dimension(knob.name, knob.kind, knob.choices, KNOB_KINDS[knob.kind].neutral, known.get(knob.name))
        for knob in space.knobs
    ]


def learned_dimensions(prepared: PreparedStudy, known: KnownDamage | None = None) -> list[SearchDimension]:
    """`space_dimensions` with every recovery that rungs may stop a trial after, also where the space offers but one."""
    dimensions, rungs = space_dimensions(prepared.space, known), prepared.spec.rungs
    offered = [int(epochs) for epochs in prepared.space.choices[RECOVERY_KIND]]
    if rungs is None or offered == [0]:
        return dimensions
    marks = {mark for epochs in offered for mark in rungs.marks(epochs)}
    stops = marks | {0.0} if 0 in rungs.recovery else marks
    if len(offered) == 1:
        return [*dimensions, recovery_dimension(RECOVERY_KIND, offered, stops)]
    return [
        recovery_dimension(knob.name, knob.choices, stops) if knob.kind == RECOVERY_KIND else knob
        for knob in dimensions
    ]


def greedy_policies(prepared: PreparedStudy, known: KnownDamage) -> list[Policy]:
    """Policies along the greedy path of what single choices damage, against what they save.

    Those are the objectives that are counted, else BOPs and bytes as most machines have them. The policies are recovered as long
    as the space allows, as the anchors of a structure are: several choices together do most damage.
    """
    space, cost = prepared.space, cost_of(prepared)
    columns = [COUNTED.index(name) for name in prepared.spec.objectives if name in COUNTED] or list(OF_MACHINES)
    dimensions = space_dimensions(space, known)
    recovered = space.uniform({RECOVERY_KIND: max(space.choices[RECOVERY_KIND])})
    start = encode(dimensions, space.parameters(recovered))
    path = path_policies(dimensions, start, lambda codes: np.log(cost(codes)[:, columns]).sum(axis=1))
    return [space.policy(decode(dimensions, codes)) for codes in path]


def role_of(metric: str, counts_are_exact: bool) -> Role:
    """How the policy sampler knows a metric: counts that are not exact are features from which it is learned."""
    if is_quality(metric):
        return "quality"
    return COUNTED.index(metric) if metric in COUNTED and counts_are_exact else "measured"


def worst_corner(
    baseline: Mapping[str, float], objectives: Sequence[str], constraints: Sequence[Constraint]
) -> list[float]:
    """What improvement is counted from: the study's reference point, tightened to what constraints on objectives allow.

    A maximised metric, whose reference is 0, starts near the baseline's instead.
    """
    corner = list(reference_point(baseline, [Objective.of(name) for name in objectives], constraints))
    for index, name in enumerate(objectives):
        margin = METRICS[name].margin
        if METRICS[name].direction == "maximize":
            corner[index] = baseline[name] / 1.1 if margin is None else baseline[name] - margin
        for constraint in constraints:
            if constraint.metric == name and constraint.violation(corner[index]) > 0:
                corner[index] = constraint.bound
    return corner
