"""A prepared study in a designer's terms: dimensions of its space, roles of its objectives, counted costs, the reference point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from ...core.metrics import FRACTION, Quality, is_quality
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.models.layers import all_layers
from ...spaces.policies.policy import Choice, Policy
from ...spaces.space import Space
from ...studies.analysis.front import Objective, reference_point
from ...studies.study_file.constraint import Constraint
from ..trials.prepared_study import PreparedStudy
from .dimensions import RECOVERY_KIND, SearchDimension, decode, encode, recovery_dimension, search_dimension
from .greedy_path import path_policies
from .surrogate.analytic_cost import COUNTED, OF_MACHINES, AnalyticCost
from .surrogate.surrogate import Role

KnownDamage = Mapping[str, Mapping[Choice, float]]
"""Knob -> choice -> nats that choice does alone."""


_COSTS: WeakKeyDictionary[PreparedStudy, AnalyticCost] = WeakKeyDictionary()


def cost_of(prepared: PreparedStudy) -> AnalyticCost:
    """What is counted of the points of a prepared study's space; the model is traced for it once."""
    if prepared not in _COSTS:
        model, example = prepared.context.workload.model, prepared.context.workload.example_input
        _COSTS[prepared] = AnalyticCost(prepared.space, all_layers(model, example), model, example)
    return _COSTS[prepared]


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
    offered = [float(epochs) for epochs in prepared.space.choices[RECOVERY_KIND]]
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
    baseline: Mapping[str, float],
    objectives: Sequence[str],
    constraints: Sequence[Constraint],
    quality: Quality = FRACTION,
) -> list[float]:
    """What improvement is counted from: the study's reference point, tightened to what constraints on objectives allow.

    A maximised metric, whose reference is 0, starts near the baseline's instead.

    Args:
        quality: what `accuracy` is.
    """
    searched = [Objective.of(name, quality) for name in objectives]
    corner = list(reference_point(baseline, searched, constraints))
    for index, (name, objective) in enumerate(zip(objectives, searched, strict=True)):
        if objective.direction == "maximize":
            margin = objective.margin
            corner[index] = baseline[name] / 1.1 if margin is None else baseline[name] - margin
        for constraint in constraints:
            if constraint.metric == name and constraint.violation(corner[index]) > 0:
                corner[index] = constraint.bound
    return corner
