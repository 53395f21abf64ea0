"""The end of a search: the front timed again on the quiet machine, and scored once on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import EvaluationError
from ..core.metrics import Phase, is_confirmed
from ..evaluators.evaluator import LoweredCandidate
from ..evaluators.registry import measure
from ..hardware_profiles.runtimes.base import Artifact
from ..studies.files.study_files import MODEL
from .driver import Search
from .events import FilesRemade, TrialConfirmed
from .fidelity.rungs import confirmed_rung
from .trials.baseline import with_test_scores

SECONDS = 2.0


def confirm_front(search: Search) -> None:
    """Measure every point of the front again, the very files that export hands out, one after the other.

    New figures may change the front; a trial that joins it is confirmed too, its files made again where they were not kept.
    """
    plain = search.prepared.context
    with search.prepared.bench(search.reference.artifact) as bench:
        if not search.prepared.target.predict:
            search.take_quiet_moment(bench)
        reference, confirmed = with_test_scores(plain, search.reference), _confirmed(search)
        context = replace(plain, bench=bench, reference=reference, timing_seconds=SECONDS)
        while waiting := [point.trial for point in search.front if point.trial not in confirmed]:
            number = waiting[0]
            artifact, phases = _artifact(search, number)
            try:
                measured = measure(LoweredCandidate(None, artifact), context, *phases)
            except EvaluationError as error:
                raise EvaluationError(f"trial {number}: {error}") from error
            search.remeasured(number, measured, confirmed_rung(search.spec))
            confirmed.add(number)
            search.tell(TrialConfirmed(number, len(confirmed), len(confirmed) + len(waiting) - 1))


def _confirmed(search: Search) -> set[int]:
    """Points an earlier run of the study confirmed, and whose files are there if the study keeps any."""
    confirmed = {point.trial for point in search.front if is_confirmed(point.measurements)}
    return {number for number in confirmed if search.spec.keep == "none" or search.kept.take_back(number)}


def _artifact(search: Search, number: int) -> tuple[Artifact, Sequence[Phase]]:
    """A point's artifact, and what is to be measured of it: accuracy too, where it is made again and is another file."""
    if search.kept.take_back(number):
        return Artifact.of(search.files.path(search.files.newest(number)[MODEL])), ("confirmed",)
    remade = search.kept.make_again(search.prepared, search.store.get_trial(search.spec.study, number))
    search.tell(FilesRemade(number, remade))
    phases: Sequence[Phase] = ("scored", "confirmed") if MODEL in remade.differing else ("confirmed",)
    return Artifact.of(search.files.path(search.files.newest(number)[MODEL])), phases
