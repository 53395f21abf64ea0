"""A search waits for a database that does not answer for a while, and each of its calls is made once."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from slimfront.core.errors import StoreAwayError, StoreError
from slimfront.core.interrupts import uninterrupted
from slimfront.search.optuna.storage import StudyStorage, open_storage
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.store import patience
from slimfront.studies.store.patience import Patience
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from sqlalchemy import Engine, event

AWAY_S = 1.0
KNOBS = 4


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0.1)


@contextmanager
def opened(url: str, folder: Path, said: list[str]) -> Iterator[tuple[Store, optuna.Study]]:
    """A store that is patient, with a study in both sets of tables."""
    spec = StudySpec.from_document(
        {
            "study": "tiny", "workload": "digits", "target": "cpu-openvino", "objectives": ["accuracy_drop", "latency_ms"],
            "budget": {"trials": 9}, "space": {"weight_bits": [8, 32]},
        }, "tiny.yaml", folder,
    )  # fmt: skip
    with Store(url) as store:
        store.create_study(spec, "f", {}, {})
        store.patience.begin(said.append, limit_s=60)
        yield store, optuna.create_study(storage=StudyStorage(open_storage(store)), study_name="tiny")


def a_trial(store: Store, study: optuna.Study) -> None:
    """All that a search writes of a trial, as it does."""
    storage: Any = study._storage
    trial = study.ask()
    with storage.together():
        for number in range(KNOBS):
            trial.suggest_categorical(f"knob {number}", [1, 2])
    store.start_trial("tiny", trial.number, Policy())
    with storage.together():
        trial.set_user_attr("digest", "d")
    study.tell(trial, 1.0)


def require_whole(store: Store, study: optuna.Study, trials: int) -> None:
    assert [trial.number for trial in store.trial_summaries("tiny")] == list(range(trials))
    kept = study.get_trials()
    assert [(trial.number, trial.value, len(trial.params)) for trial in kept] == [
        (n, 1.0, KNOBS) for n in range(trials)
    ]


@contextmanager
def meanwhile(do: Callable[[], object]) -> Iterator[None]:
    """Something that a thread does after a while."""
    thread = threading.Timer(AWAY_S, do)
    thread.start()
    yield
    thread.join()


def test_a_search_outlasts_a_restart_of_its_server(postgresql_server: Any, postgresql_url: str, tmp_path: Path) -> None:
    said: list[str] = []
    with opened(postgresql_url, tmp_path, said) as (store, study):
        a_trial(store, study)
        postgresql_server.control("-m", "fast", "stop")
        with meanwhile(lambda: postgresql_server.control("start")):
            a_trial(store, study)
        require_whole(store, study, 2)
    assert len(said) == 2
    assert said[0].startswith("postgresql://slimfront@/")
    assert said[0].endswith("; this search tries again for up to 60 s")
    assert said[1].startswith("the database answers again, after ")


def test_a_call_that_is_cut_off_anywhere_is_made_again_whole(postgresql_url: str, tmp_path: Path) -> None:
    """The server ends the connection of each statement that writes, one after the other."""
    said: list[str] = []
    seen = [0]

    def cut(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if not statement.startswith(("INSERT", "UPDATE")):
            return
        seen[0] += 1
        if seen[0] == after[0]:
            cursor.connection.pgconn.finish()

    with opened(postgresql_url, tmp_path, said) as (store, study):
        after = [0]
        event.listen(Engine, "before_cursor_execute", cut)
        try:
            a_trial(store, study)  # the first of a name is written alone
            seen[0] = 0
            a_trial(store, study)
            writes = seen[0]
            for number in range(writes):
                after[0], seen[0] = number + 1, 0
                a_trial(store, study)
        finally:
            event.remove(Engine, "before_cursor_execute", cut)
        assert writes > 5
        require_whole(store, study, 2 + writes)
    assert len(said) == 2 * writes


def test_a_search_outlasts_another_process_that_has_its_file_locked(tmp_path: Path) -> None:
    said: list[str] = []
    with opened(f"sqlite:///{tmp_path}/slimfront.db?timeout=0.1", tmp_path, said) as (store, study):
        other = sqlite3.connect(tmp_path / "slimfront.db", isolation_level=None, check_same_thread=False)
        with closing(other):
            other.execute("BEGIN IMMEDIATE")
            with meanwhile(lambda: other.execute("ROLLBACK")):
                store.start_trial("tiny", 0, Policy())
        study.add_trial(optuna.create_trial(value=1.0))
        assert [trial.number for trial in store.trial_summaries("tiny")] == [0]
    assert ": locked by another process" in said[0]
    assert len(said) == 2


def gone() -> None:
    raise StoreAwayError("db: gone")


def test_what_stays_away_is_waited_for_once() -> None:
    said: list[str] = []
    waiting = Patience()
    with pytest.raises(StoreAwayError, match="db: gone"):
        waiting.outlast(gone)
    waiting.begin(said.append, limit_s=0.3)
    with pytest.raises(StoreError, match=r"^db: gone; waited 0 s; once it answers, the same command continues$"):
        waiting.outlast(gone)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"once it answers, the same command continues$"):
        waiting.outlast(gone)  # what is stored at the end of a search that gave up, and takes the place of its error
    assert time.monotonic() - began < 0.2
    assert said == ["db: gone; this search tries again for up to 0.3 s"]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("block", [uninterrupted, nullcontext])
def test_an_interrupt_ends_the_wait_and_all_later_ones(block: Callable[[], AbstractContextManager[None]]) -> None:
    waiting = Patience()
    waiting.begin(lambda _: None)
    pressed = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    pressed.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), block():
        waiting.outlast(gone)
    with pytest.raises(StoreError, match=r"^db: gone; .*once it answers, the same command continues$"):
        waiting.outlast(gone)
    assert time.monotonic() - began < 5
