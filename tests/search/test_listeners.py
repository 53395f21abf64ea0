"""Events of a search: a listener hears of everything in order, and one that raises ends the search and loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from slimfront.search.driver import Search
from slimfront.search.events import (
    Event,
    FrontChanged,
    Preparing,
    ReferenceSettled,
    StageRecorded,
    TrialFinished,
    TrialStarted,
)
from slimfront.search.execution.base import run_trials
from slimfront.search.execution.local import run_local
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_timings")]


class NoSuchLuck(Exception):
    """What a listener of the caller's own raises."""


def run(search: Search, workers: int) -> None:
    if not workers:
        run_local(search, isolated=True)
        return
    from slimfront.search.execution.ray_runner import RayRunner

    run_trials(search, RayRunner(search, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_listener_that_raises_ends_the_search_and_loses_nothing(
    workers: int, tiny_spec: Callable[..., StudySpec], tmp_path: Path
) -> None:
    prepared = prepare(tiny_spec(workers=workers, budget={"trials": 5}))
    heard: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        if sum(isinstance(each, TrialFinished) for each in heard) == 3:
            raise NoSuchLuck

    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        with pytest.raises(NoSuchLuck):
            run(Search(prepared, store, tmp_path / "artifacts", [listen]), workers)
        assert not store.running_trials("tiny")
        assert [trial.state for trial in store.trials("tiny")].count("complete") == 3
        settled, first, *_ = (event for event in heard if not isinstance(event, Preparing))
        assert isinstance(settled, ReferenceSettled)
        assert isinstance(first, TrialStarted)
        assert first.policy.is_uncompressed
        ends = [event.trial.number for event in heard if isinstance(event, TrialFinished)]
        for number in ends:
            own = [e for e in heard if isinstance(e, TrialStarted | StageRecorded) and e.trial == number]
            assert isinstance(own[0], TrialStarted)
            assert len(own) > 1
        assert any(isinstance(event, FrontChanged) and event.joined for event in heard)
        run_local(Search(prepared, store, tmp_path / "artifacts"))
        done = [trial.digest for trial in store.trials("tiny") if trial.state == "complete"]
        assert len(done) == len(set(done)) == 5
        front = store.current_front("tiny")
        assert front is not None
        assert front.members == tuple(sorted(p.trial for p in Search(prepared, store, tmp_path / "artifacts").front))
