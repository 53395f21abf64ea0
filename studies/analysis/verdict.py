"""Whether a search found anything that is worth deploying in place of the reference, and what bounds it where it did not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...core.measurement import Measurement
from ...core.metrics import METRICS, is_quality
from ..store.records import StudyRecord
from ..store.store import Store
from ..wording import excess_text, short_text
from .budget_rules import ended, has_begun
from .front import MeasuredTrial, Objective, Point, better_somewhere, reference_point
from .newest_front import front_points, objectives_of


@dataclass(frozen=True)
class _Reference:
    """The reference as the source of a point."""

    measurements: Mapping[str, Measurement]
    number: int = -1
    digest: str = ""


def verdict(store: Store, name: str) -> str | None:
    """One sentence where no point of a study's front is worth more than its reference; None where one is, and before any is known.

    Raises:
        StoreError: there is no such study.
    """
    study, summaries = store.get_study(name), store.trial_summaries(name)
    points = front_points(store, study)
    if not points or not has_begun(summaries) or any(_worthy(study, points)):
        return None
    wanted = study.spec.budget.trials
    is_over = wanted is not None and ended(summaries) >= wanted
    costs = " or ".join(objective.name for objective in _costs(objectives_of(study)))
    return (
        f"no gain{'' if is_over else ' so far'}: no point of the front is better than the reference in {costs} "
        f"beyond noise at the quality asked for; {bound(store, name)}"
    )


def bound(store: Store, name: str) -> str:
    """What keeps a study's trials from being worth more than its reference, in words."""
    timed = store.compressed_values(name, "speedup")
    if not timed:
        return "no compressed model was timed"
    fastest = store.get_trial(name, max(timed, key=lambda number: timed[number]))
    speedup = fastest.measurements["speedup"]
    found = f"the fastest trial, {fastest.number}, ran {short_text(speedup.value, 'ratio')} as fast"
    if speedup.low <= 1:
        return (
            f"{found}, which is no gain: none of {len(timed)} compressed models that were timed is faster beyond noise"
        )
    for violation in fastest.violations:
        if violation.excess > 0:
            return f"{found}, but violates {violation.constraint} by {excess_text(violation)}"
    drop = fastest.measurements.get("accuracy_drop")
    return f"{found}, with an accuracy drop of {short_text(drop.value, drop.unit)}" if drop is not None else found


def _worthy(study: StudyRecord, points: Sequence[Point]) -> Iterable[bool]:
    """Of each point, whether it costs less than the reference beyond noise, at a quality that is worth anything."""
    objectives = objectives_of(study)
    costs = _costs(objectives)
    values = {name: measurement.value for name, measurement in study.baseline.items()}
    worst = reference_point(values, objectives, study.spec.constraints)
    reference = Point.of(_Reference(study.baseline), costs)
    for point in points:
        is_good = all(
            objective.sign * value < objective.sign * bar
            for objective, value, bar in zip(objectives, point.values, worst, strict=True)
            if is_quality(objective.name)
        )
        cheaper = Point.of(_measured(point), costs)
        yield is_good and bool(better_somewhere([cheaper], [reference], costs))


def _costs(objectives: Sequence[Objective]) -> Sequence[Objective]:
    """The objectives that are not quality; all where there are no others."""
    return [objective for objective in objectives if METRICS[objective.name].role != "quality"] or objectives


def _measured(point: Point) -> MeasuredTrial:
    return _Reference(point.measurements, point.trial, point.policy_digest)
