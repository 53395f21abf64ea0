"""A database that is full ends a search with one line, and leaves nothing that the next run does not put right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slimfront.core.errors import StoreError
from slimfront.search.driver import Search
from slimfront.search.events import Event, StageRecorded
from slimfront.search.execution.local import run_local
from slimfront.search.sole_driver import sole_driver
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from sqlalchemy import event
from sqlalchemy.pool import Pool

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_timings")]

UNLIMITED = 1_000_000


@pytest.fixture
def pages() -> Iterator[list[int]]:
    """The most pages that any SQLite database may have from now on; -1 for those it has."""
    most = [UNLIMITED]

    def limit(connection: Any, *_: object) -> None:
        have = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {have if most[0] < 0 else most[0]}")

    event.listen(Pool, "checkout", limit)
    yield most
    event.remove(Pool, "checkout", limit)


def test_a_full_database_is_one_line_and_the_trial_is_not_left_running(
    pages: list[int], tiny_spec: Callable[..., StudySpec], tmp_path: Path
) -> None:
    def fill(event: Event) -> None:
        if isinstance(event, StageRecorded) and event.trial == 1:
            pages[0] = -1

    prepared = prepare(tiny_spec(budget={"trials": 3}, sensitivity=False))
    with Store(f"sqlite:///{tmp_path}/slimfront.db") as store:
        with pytest.raises(StoreError) as caught, sole_driver(store, "tiny"):
            run_local(Search(prepared, store, tmp_path / "artifacts", [fill]))
        pages[0] = UNLIMITED
        with sole_driver(store, "tiny"):
            run_local(Search(prepared, store, tmp_path / "artifacts"))
        assert str(caught.value).endswith(
            "slimfront.db: the database or its disk is full; nothing more is stored until there is space"
        )
        states = [trial.state for trial in store.trial_summaries("tiny")]
    assert "running" not in states
    assert states.count("complete") + states.count("infeasible") == 3
