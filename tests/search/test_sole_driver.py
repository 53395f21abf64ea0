"""One driver per study, whatever becomes of the process, its connections and the names of its file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from slimfront.core.errors import StoreError
from slimfront.search.optuna.storage import open_storage
from slimfront.search.sole_driver import sole_driver
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.store import lease
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from sqlalchemy import text

REFUSED = "study 'tiny' is being searched by another process"

DRIVER = """
import signal, sys, time
from slimfront.core.errors import StoreError
from slimfront.search.sole_driver import sole_driver
from slimfront.studies.store import lease
from slimfront.studies.store.store import Store

def renew(held, renewing=lease.Lease.renew):
    renewing(held)
    print("renewed", flush=True)
    sys.stdin.readline()

lease.Lease.renew, lease.HEARTBEAT_S = renew, 0.1
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with Store(sys.argv[1]) as store, sole_driver(store, "tiny"):
        print("driving", flush=True)
        time.sleep(600)
except StoreError as error:
    sys.exit(str(error))
"""
"""Drives the study given by its database's URL, and renews its lease at once, and again for every line on stdin: never while a test looks."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/slimfront.db"
    return request.getfixturevalue("postgresql_url")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as store:
        yield store


@contextmanager
def another_driver(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that drives the study."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "driving\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def take_over(store: Store, study: str = "tiny") -> None:
    """Have another process own the study, as if its lease had expired."""
    with store._database.unguarded() as session:
        session.execute(text("UPDATE slimfront_lease SET owner = 'elsewhere 1 2 3' WHERE study = :s"), {"s": study})


def expires(store: Store, sooner_s: float = 0) -> float:
    """Unix time at which the lease of the study ends, brought forward by so many seconds."""
    with store._database.unguarded() as session:
        session.execute(text("UPDATE slimfront_lease SET expires = expires - :s"), {"s": sooner_s})
        return session.scalar(text("SELECT expires FROM slimfront_lease")) or 0.0


def test_names_that_a_short_hash_mixes_up_are_two_studies(store: Store):
    with sole_driver(store, "exp-l5dmvs"), sole_driver(store, "exp-pz8lbs"):
        pass


def test_a_database_by_another_name_is_the_same_one(tmp_path: Path):
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    with Store(f"sqlite:///{tmp_path}/real.db") as store, Store(f"sqlite:///{tmp_path}/link.db") as linked:
        with sole_driver(store, "tiny"), pytest.raises(StoreError, match=REFUSED), sole_driver(linked, "tiny"):
            pass
        assert list(tmp_path.glob("*.lock")) == []


def test_of_drivers_that_start_at_once_one_drives(url: str):
    Store(url).close()
    barrier, outcomes = threading.Barrier(6), []

    def drive() -> None:
        with Store(url) as store:
            barrier.wait()
            try:
                store.lease("tiny").take()
                outcomes.append("drives")
            except StoreError as error:
                outcomes.append(str(error)[: len(REFUSED)])

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["drives", *[REFUSED] * 5]


def test_the_next_driver_need_not_wait_for_one_that_was_killed(url: str, store: Store):
    with another_driver(url) as other:
        with pytest.raises(StoreError, match=rf"{REFUSED} \(process {other.pid} on "), sole_driver(store, "tiny"):
            pass
        other.kill()  # no exit handler runs
        other.wait()
        with sole_driver(store, "tiny"):
            pass


def test_a_driver_that_slept_is_taken_over_and_then_stops(url: str, store: Store):
    with another_driver(url) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        first = expires(store)
        assert other.stdout.readline() == "renewed\n"
        assert expires(store) > first
        with pytest.raises(StoreError, match=REFUSED), sole_driver(store, "tiny"):
            pass
        os.kill(other.pid, signal.SIGSTOP)
        expires(store, sooner_s=lease.EXPIRES_S + 1)
        with sole_driver(store, "tiny"):
            os.kill(other.pid, signal.SIGCONT)
            _, said = other.communicate("\n", timeout=120)
    assert said == (
        "study 'tiny' was taken over by another process while this one gave no sign of life for 60 s; "
        "this one stops, the other continues\n"
    )
    assert other.returncode == 1


def test_a_process_elsewhere_keeps_its_lease_until_it_expires(store: Store):
    store.lease("tiny").take()
    take_over(store)
    with pytest.raises(StoreError, match=r"process 1 on elsewhere"):
        store.lease("tiny").take()
    expires(store, sooner_s=lease.EXPIRES_S + 1)
    store.lease("tiny").take()


def test_a_driver_without_its_lease_writes_nothing(store: Store, tmp_path: Path):
    spec = StudySpec.from_document(
        {
            "study": "tiny", "workload": "digits", "target": "cpu-openvino", "objectives": ["accuracy_drop", "latency_ms"],
            "budget": {"trials": 1}, "space": {"weight_bits": [8, 32]},
        }, "tiny.yaml", tmp_path,
    )  # fmt: skip
    storage = open_storage(store)
    with sole_driver(store, "tiny"):
        store.create_study(spec, "f", {}, {})
        trial = optuna.create_study(storage=storage, study_name="tiny").ask()
        take_over(store)
        with pytest.raises(StoreError, match="taken over by another process"):
            store.start_trial("tiny", 0, Policy())
        with pytest.raises(StoreError, match="taken over by another process"):
            trial.suggest_float("x", 0, 1)
        assert store.trials("tiny") == []
    assert storage.get_all_trials(1)[0].params == {}


def test_a_server_that_ends_idle_connections_does_not_end_the_lease(postgresql_url: str):
    with Store(postgresql_url) as store, store._database.unguarded() as session:
        name = session.scalar(text("SELECT current_database()"))
        for kind in ("idle_in_transaction_session_timeout", "idle_session_timeout"):
            session.execute(text(f"ALTER DATABASE {name} SET {kind} = '300ms'"))
    with Store(postgresql_url) as store, Store(postgresql_url) as other, sole_driver(store, "tiny"):
        time.sleep(1)
        with pytest.raises(StoreError, match=REFUSED), sole_driver(other, "tiny"):
            pass
        assert store.studies() == []
