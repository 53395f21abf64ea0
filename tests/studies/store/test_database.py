"""Opening a database: its URL, its migrations, what can be wrong with it, and Optuna's tables next to ours."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from slimfront.core.errors import StoreError
from slimfront.core.measurement import Measurement
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.store import migrations
from slimfront.studies.store.database import Database, database_url
from slimfront.studies.store.store import Store
from slimfront.studies.store.tables import PREFIX, REVISION, VERSION_TABLE, Base, Trial
from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text


@pytest.fixture
def connection(url):
    """A connection of SQLAlchemy's own to an empty database."""
    engine = create_engine(database_url(url))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def tables(url: str) -> set[str]:
    engine = create_engine(database_url(url))
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


def differences(connection: Connection) -> list:
    return compare_metadata(MigrationContext.configure(connection, opts=migrations.OPTIONS), Base.metadata)


# URLs


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_goes_through_psycopg_3(scheme):
    assert str(database_url(f"{scheme}://me@host/name")) == "postgresql+psycopg://me@host/name"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "me@host/name",
            "storage 'me@host/name' is not a database URL; write a file's name, sqlite:///slimfront.db or",
        ),
        (" ", "storage ' ' is not a database URL"),
        ("mysql://host/name", "storage is SQLite or PostgreSQL, not mysql"),
        ("sqlite://", "a database in memory ends with the command; name a file"),
        ("sqlite:///:memory:", "a database in memory ends with the command; name a file"),
        (f"sqlite:///{'x' * 5000}.db", "File name too long"),
    ],
)
def test_a_url_of_another_kind_is_refused(url, problem):
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["slimfront.db", "studies/mine.db", "../mine", "/data/my studies.db"])
def test_a_path_is_an_sqlite_file(path):
    assert database_url(path) == database_url(f"sqlite:///{path}")


def test_a_study_kept_under_a_path_is_found_under_its_url(tmp_path, make_spec):
    with Store(f"{tmp_path}/plain.db") as store:
        store.create_study(make_spec(), "fingerprint", {}, {})
    with Store(f"sqlite:///{tmp_path}/plain.db", create=False) as store:
        assert store.has_study("demo")


def test_a_missing_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"pip install 'slimfront\[postgresql\]'$"):
        Store("postgresql://me@host/name")


def test_a_server_that_is_not_there_is_one_line_without_the_password(tmp_path):
    with pytest.raises(StoreError) as caught:
        Store(f"postgresql://me:secret@/name?host={tmp_path}")
    assert "No such file or directory" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_optuna_gets_the_url_with_its_password():
    assert database_url("postgresql://me:secret@host/n").password == "secret"


# Files


def test_a_file_that_must_be_there_is_not_made(tmp_path):
    path = tmp_path / "none.db"
    with pytest.raises(StoreError, match=r"none\.db: no such database; `slimfront search` makes one"):
        Store(f"sqlite:///{path}", create=False)
    assert not path.exists()


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("Dear diary, " * 100)
    with pytest.raises(StoreError, match=r"notes\.db: file is not a database$"):
        Store(f"sqlite:///{path}")


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(StoreError, match=r"no/slimfront\.db: unable to open database file$"):
        Store(f"sqlite:///{tmp_path}/no/slimfront.db")


def test_what_is_written_to_a_file_that_was_moved_is_refused_until_it_is_back(tmp_path, make_spec):
    file, elsewhere = tmp_path / "slimfront.db", tmp_path / "elsewhere.db"
    with Store(f"sqlite:///{file}") as store:
        store.create_study(make_spec(), "f1", {}, {})
        file.rename(elsewhere)
        for another in (False, True):
            if another:
                file.touch()
            with pytest.raises(
                StoreError, match=r"slimfront\.db: moved, deleted or replaced while it was open; once it is"
            ):
                store.start_trial("demo", 0, Policy())
        elsewhere.rename(file)
        store.start_trial("demo", 0, Policy())


def test_a_locked_database_is_one_line_and_readable_meanwhile(tmp_path, make_spec):
    url = f"sqlite:///{tmp_path}/slimfront.db?timeout=0.1"
    with Store(url) as store, closing(sqlite3.connect(tmp_path / "slimfront.db", isolation_level=None)) as other:
        store.create_study(make_spec(), "f", {}, {})
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process; try again when that one has ended"):
            store.start_trial("demo", 0, Policy())
        assert store.trials("demo") == []
        with Store(url) as reader:
            assert [study.name for study in reader.studies()] == ["demo"]
        other.execute("ROLLBACK")
        store.start_trial("demo", 0, Policy())


def test_sqlite_is_set_up_for_one_writer_and_many_readers(sqlite_url):
    database = Database(sqlite_url, create=True)
    with database.reading() as session:
        pragmas = [session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")]
    database.close()
    assert pragmas == ["wal", 1, 1]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_within_a_write_leaves_nothing_locked(url, make_spec):
    """In the statement itself it would leave SQLite's transaction open as long as the traceback is kept."""

    def interrupt(connection, cursor, statement, *_):
        if statement.startswith("INSERT"):
            signal.raise_signal(signal.SIGINT)

    with Store(url) as store:
        store.create_study(make_spec(), "f", {}, {})
        store.start_trial("demo", 0, Policy())
        event.listen(Engine, "after_cursor_execute", interrupt)
        try:
            with pytest.raises(KeyboardInterrupt) as kept:
                store.add_measurements("demo", 0, [Measurement.exact("flops", 7.0, "counted")])
        finally:
            event.remove(Engine, "after_cursor_execute", interrupt)
        store.finish_trial("demo", 0, "complete")
        trial = store.get_trial("demo", 0)
    assert kept.tb is not None
    assert (trial.state, trial.measurements["flops"].value) == ("complete", 7.0)


# Migrations


def test_migrations_end_where_the_models_are(url, connection):
    Store(url).close()
    assert differences(connection) == []


def test_the_comparison_would_see_a_difference(url, connection):
    Store(url).close()
    connection.execute(text("ALTER TABLE slimfront_trial ADD COLUMN mood VARCHAR(3)"))
    assert [difference[0] for difference in differences(connection)] == ["remove_column"]


def test_the_newest_migration_is_the_models_revision():
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


@contextmanager
def of_revision(url: str, revision: str) -> Iterator[Connection]:
    """The database as an older slimfront made it, to be filled."""
    engine = create_engine(database_url(url))
    with engine.begin() as old:
        config = Config(attributes={"connection": old, **migrations.OPTIONS})
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        command.upgrade(config, revision)
        yield old
    engine.dispose()


OLD_TRIALS = [
    ("complete", None, None),
    ("infeasible", "accuracy_drop <= 0.05: over it by 0.01", {"accuracy_drop <= 0.05": 0.01}),
    ("infeasible", "stopped at rung 1: 3 of 4 trials were better", {"accuracy_drop <= 0.05": -0.02}),
    ("failed", "interrupted before it ended", None),
    ("failed", "interrupted before it ended: the search's process died", None),
    ("failed", "ValueError: boom", None),
]
"""State, reason and violations as schema 0004 stored them."""


def test_fates_that_an_older_slimfront_wrote_as_sentences_become_states(url, connection):
    moment = "2026-01-02 00:00:00"
    with of_revision(url, "0004") as old:
        old.execute(
            text("INSERT INTO slimfront_study (id, name, spec, workload_fingerprint, versions, machine, created) "
                 "VALUES (1, 'demo', '{}', '', '{}', '{}', :moment)"), {"moment": moment},
        )  # fmt: skip
        for number, (state, reason, violations) in enumerate(OLD_TRIALS):
            old.execute(
                text("INSERT INTO slimfront_trial (study_id, number, policy, digest, state, reason, violations, started) "
                     "VALUES (1, :number, '{}', '', :state, :reason, :violations, :moment)"),
                {"number": number, "state": state, "reason": reason, "moment": moment,
                 "violations": None if violations is None else json.dumps(violations)},
            )  # fmt: skip
    study = optuna.create_study(storage=str(database_url(url)))
    study.ask().set_user_attr("reason", "interrupted before it ended")
    with Store(url):
        pass
    rows = connection.execute(text("SELECT state, rung, driver_died FROM slimfront_trial ORDER BY number")).all()
    assert [(state, rung, bool(died)) for state, rung, died in rows] == [
        ("complete", None, False), ("infeasible", None, False), ("pruned", 1, False),
        ("interrupted", None, False), ("interrupted", None, True), ("failed", None, False),
    ]  # fmt: skip
    found = connection.execute(select(Trial.violations).order_by(Trial.number)).scalars().all()
    assert found[1] == [{"metric": "accuracy_drop", "constraint": "accuracy_drop <= 0.05", "excess": 0.01}]
    assert found[0] is None
    assert study.trials[0].user_attrs["state"] == "interrupted"


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004"])
def test_a_database_of_an_older_slimfront_is_brought_up_to_date(url, connection, revision):
    with of_revision(url, revision):
        pass
    with Store(url) as store:
        store.lease("demo").take()
    assert differences(connection) == []


def test_all_our_tables_are_prefixed(url):
    Store(url).close()
    assert tables(url) == {*Base.metadata.tables, VERSION_TABLE}
    assert all(name.startswith(PREFIX) for name in tables(url))


def test_opening_again_changes_nothing(url, make_spec):
    with Store(url) as store:
        store.create_study(make_spec(), "f", {}, {})
    with Store(url, create=False) as store:
        assert [study.name for study in store.studies()] == ["demo"]


def test_a_migration_that_breaks_off_leaves_nothing_behind(url, monkeypatch):
    def broken(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE slimfront_study (id INTEGER)"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("slimfront.studies.store.database.upgrade", broken)
        with pytest.raises(KeyboardInterrupt):
            Store(url)
    assert tables(url) == set()
    with Store(url) as store:
        assert store.studies() == []


def test_a_database_of_a_newer_slimfront_is_refused(url, connection):
    Store(url).close()
    connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0999'"))
    connection.commit()
    with pytest.raises(StoreError, match=r"written by a newer slimfront \(schema 0999, .*\); upgrade slimfront$"):
        Store(url)


# Optuna in the same database


def optuna_url(url: str) -> str:
    return database_url(url).render_as_string(hide_password=False)


def run_optuna(url: str) -> int:
    """One more trial of an Optuna study in that database; how many it has then."""
    storage = optuna.storages.RDBStorage(optuna_url(url))
    study = optuna.create_study(
        storage=storage, study_name="demo", directions=["minimize", "minimize"], load_if_exists=True
    )
    trial = study.ask()
    study.tell(trial, [trial.suggest_float("x", 0, 1), 1.0])
    count = len(study.trials)
    storage.remove_session()
    storage.engine.dispose()
    return count


@pytest.fixture(autouse=True)
def _quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize("optuna_first", [True, False], ids=["optuna-first", "slimfront-first"])
def test_optuna_shares_the_database(url, optuna_first, make_spec):
    if optuna_first:
        assert run_optuna(url) == 1
        before = tables(url)
    with Store(url) as store:
        store.create_study(make_spec(), "f", {}, {})
        store.start_trial("demo", 0, Policy())
    if optuna_first:
        assert tables(url) == before | {*Base.metadata.tables, VERSION_TABLE}
    assert run_optuna(url) == (2 if optuna_first else 1)
    with Store(url) as store:
        assert [trial.number for trial in store.trials("demo")] == [0]


def test_optuna_s_tables_are_no_difference_to_our_migrations(url, connection):
    run_optuna(url)
    Store(url).close()
    assert differences(connection) == []


def test_the_store_s_url_opens_optuna_s_storage(url):
    with Store(url) as store:
        assert run_optuna(store.url) == 1
