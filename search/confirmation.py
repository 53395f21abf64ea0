"""The end of a search: the front timed again on the quiet machine, and scored once on the test split."""

from __future__ import annotations

from dataclasses import replace

from ..core.errors import EvaluationError
from ..core.metrics import is_confirmed
from ..evaluators.evaluator import LoweredCandidate
from ..evaluators.registry import measure
from ..hardware_profiles.runtimes.base import Artifact
from ..studies.files.study_files import MODEL
from .driver import Search
from .events import TrialConfirmed
from .fidelity.rungs import confirmed_rung
from .trials.baseline import with_test_scores

SECONDS = 2.0


def confirm_front(search: Search) -> None:
    """Measure every point of the front again, the very files that export hands out, one after the other.

    New figures may change the front; a trial that joins it is confirmed too.
    """
    plain = search.prepared.context
    with search.prepared.bench(search.reference.artifact) as bench:
        if not search.prepared.target.predict:
            search.take_quiet_moment(bench)
        reference, confirmed = with_test_scores(plain, search.reference), _confirmed(search)
        context = replace(plain, bench=bench, reference=reference, timing_seconds=SECONDS)
        while waiting := [point.trial for point in search.front if point.trial not in confirmed]:
            number = waiting[0]
            try:
                measured = measure(LoweredCandidate(None, _artifact(search, number)), context, "confirmed")
            except EvaluationError as error:
                raise EvaluationError(f"trial {number}: {error}") from error
            search.remeasured(number, measured, confirmed_rung(search.spec))
            confirmed.add(number)
            search.tell(TrialConfirmed(number, len(confirmed), len(confirmed) + len(waiting) - 1))


def _confirmed(search: Search) -> set[int]:
    """Points an earlier run of the study confirmed."""
    return {point.trial for point in search.front if is_confirmed(point.measurements)}


def _artifact(search: Search, number: int) -> Artifact:
    return Artifact.of(search.files.path(search.files.newest(number)[MODEL]))
