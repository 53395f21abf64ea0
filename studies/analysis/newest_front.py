"""The newest front of a study as points, and why there is none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ..store.records import StudyRecord, TrialSummary, Violation
from ..store.store import Store
from ..wording import excess_text
from .front import Objective, Point


def objectives_of(study: StudyRecord) -> list[Objective]:
    """What the study trades against each other."""
    return [Objective.of(name, study.quality) for name in study.spec.objectives]


def front_points(store: Store, study: StudyRecord) -> list[Point]:
    """The points of the newest front with their newest measurements, best first by the first objective."""
    objectives = objectives_of(study)
    points = [Point.of(trial, objectives) for trial in store.front_trials(study.name)]
    return sorted(points, key=lambda point: (objectives[0].sign * point.values[0], point.trial))


def excesses(trials: Sequence[TrialSummary]) -> Mapping[str, list[Violation]]:
    """Violated constraint -> the violations of it, the nearest first; the most violated constraint first."""
    found: dict[str, list[Violation]] = defaultdict(list)
    for trial in trials:
        for violation in trial.violations:
            if violation.excess > 0:
                found[violation.constraint].append(violation)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return {constraint: sorted(violations, key=lambda each: each.excess) for constraint, violations in ordered}


def why_no_front(trials: Sequence[TrialSummary]) -> str:
    """One sentence on a study whose front is empty."""
    states = Counter(trial.state for trial in trials if trial.state.has_ended)
    if not states:
        return "no trial has ended"
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    sentence = f"no trial of {states.total()} met every constraint ({counts})"
    for constraint, beyond in excesses(trials).items():
        return (
            f"{sentence}; most often violated: {constraint}, by {len(beyond)}, the nearest by {excess_text(beyond[0])}"
        )
    return sentence
