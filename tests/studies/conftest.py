"""A fresh database per test: a SQLite file, or one in a private PostgreSQL server that ends with the session."""

from __future__ import annotations

import glob
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slimfront.studies.spec import StudySpec
from slimfront.studies.store import Store

_databases = itertools.count()


def _postgresql_binaries() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += [Path(folder) for folder in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    pytest.skip("no PostgreSQL server: neither on PATH nor under /usr/lib/postgresql")


def _as_server_user(folder: Path) -> list[str]:
    """A prefix that runs a command as someone PostgreSQL agrees to run as: anyone but root."""
    if os.geteuid() != 0:
        return []
    for user in ("postgres", "nobody"):
        if subprocess.run(["id", user], capture_output=True, check=False).returncode == 0:
            shutil.chown(folder, user)
            return ["runuser", "-u", user, "--"]
    pytest.skip("no user but root to run PostgreSQL as")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL, with {name} for the database, of a server of our own that listens on a socket in its folder only."""
    binaries = _postgresql_binaries()
    folder = Path(tempfile.mkdtemp(prefix="slimfront-postgresql-"))
    run_as = _as_server_user(folder)

    def run(*command: str) -> None:
        subprocess.run([*run_as, *command], check=True, capture_output=True, cwd=folder, timeout=120)

    data = str(folder / "data")
    run(str(binaries / "initdb"), "-D", data, "-U", "slimfront", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    log = str(folder / "log")
    run(str(binaries / "pg_ctl"), "-D", data, "-l", log, "-w", "-o", options, "start")
    try:
        yield f"postgresql://slimfront@/{{name}}?host={folder}"
    finally:
        run(str(binaries / "pg_ctl"), "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/slimfront.db"


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    psycopg = pytest.importorskip("psycopg")
    name = f"test_{next(_databases)}"
    with psycopg.connect(postgresql_server.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgresql_server.format(name=name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Of an empty database, once of each kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as store:
        yield store


@pytest.fixture
def make_spec() -> Callable[..., StudySpec]:
    """Builds a small valid spec; keyword arguments replace top-level keys."""

    def make(**changes: object) -> StudySpec:
        document = {
            "study": "demo",
            "workload": "digits",
            "target": "cpu-openvino",
            "objectives": ["accuracy_drop", "latency_ms"],
            "budget": {"trials": 10},
            "space": {"weight_bits": [4, 8, 32]},
        }
        return StudySpec.from_document({**document, **changes}, "demo.yaml", Path("/studies"))

    return make
