"""A fresh database per test: a SQLite file, or one in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/slimfront.db"


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
