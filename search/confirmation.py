"""The end of a search: the front timed again on the quiet machine, and scored once on the test split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import EvaluationError, describe_exception
from ..core.interrupts import raise_if_interrupted
from ..core.measurement import Measurement
from ..evaluators.accuracy import accuracy_measurements, score
from ..evaluators.latency import latency_measurements
from ..hardware_profiles.runtimes.base import Artifact
from .driver import Search
from .fidelity.rungs import confirmed_rung
from .trials.baseline import with_test_scores

SECONDS = 2.0


def confirm_front(search: Search, progress: Callable[[int, int], None] = lambda *_: None) -> None:
    """Measure every point of the front again, the very files that export hands out, one after the other.

    New figures may change the front; whoever joins it is confirmed too.

    Args:
        progress: told (confirmed so far, points to confirm).
    """
    context = search.prepared.context
    reference = with_test_scores(context, search.reference)
    assert reference.test is not None  # just scored
    confirmed = _confirmed(search)
    with search.prepared.bench(reference.artifact) as bench:
        while waiting := [point.trial for point in search.front if point.trial not in confirmed]:
            number = waiting[0]
            artifact = _artifact(search, number)
            measured: list[Measurement] = []
            if not context.target.predict:
                timing = bench.time(artifact.path, SECONDS)
                measured += latency_measurements(timing, reference.latency_ms, context.target)
            with _naming(number):
                scores = score(artifact, context.workload.test, context)
                measured += accuracy_measurements(scores, reference.test, prefix="test_")
            search.remeasured(number, measured, confirmed_rung(search.spec))
            confirmed.add(number)
            progress(len(confirmed), len(confirmed) + len(waiting) - 1)


@contextmanager
def _naming(trial: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # the user's metric may raise anything
        raise_if_interrupted(error)
        raise EvaluationError(
            f"trial {trial} cannot be scored on the test split: {describe_exception(error)}"
        ) from error


def _confirmed(search: Search) -> set[int]:
    """Points an earlier run of the study confirmed."""
    return {point.trial for point in search.front if "test_accuracy" in point.measurements}


def _artifact(search: Search, number: int) -> Artifact:
    paths = {record.kind: record.path for record in search.store.artifacts(search.spec.study, number)}
    return Artifact.of(Path(paths["model"]))
