"""How a trial stands to its study's constraints, and in which state it ends for that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...core.metrics import METRICS
from ..study_file.constraint import Constraint
from .records import Violation
from .trial_state import TrialState


def violations_of(constraints: Iterable[Constraint], values: Mapping[str, float]) -> list[Violation]:
    """How a trial stands to each constraint on what was measured of it: metric -> value."""
    judged = (constraint for constraint in constraints if constraint.metric in values)
    return [Violation(c.metric, str(c), c.violation(values[c.metric])) for c in judged]


def judged(violations: Sequence[Violation]) -> tuple[TrialState, str]:
    """State of a trial that ran to its end, and the first constraint that it violates, in words."""
    for violation in violations:
        if violation.excess > 0:
            return TrialState.INFEASIBLE, f"violates {violation.constraint}: {value_of(violation):.4g}"
    return TrialState.COMPLETE, ""


def value_of(violation: Violation) -> float:
    """The value that was judged."""
    constraint = _constraint(violation)
    is_upper = constraint.op in ("<=", "<")
    return constraint.bound + violation.excess if is_upper else constraint.bound - violation.excess


def rescaled(violation: Violation, factor: float) -> Violation:
    """A violation after milliseconds were multiplied by `factor`."""
    power = METRICS[violation.metric].latency_power
    if not power:
        return violation
    excess = _constraint(violation).violation(value_of(violation) * factor**power)
    return Violation(violation.metric, violation.constraint, excess)


def _constraint(violation: Violation) -> Constraint:
    return Constraint.parse(violation.constraint, frozenset([violation.metric]))
