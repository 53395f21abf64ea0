"""A study database of the program as it was before trials had states of their own opens, shows, exports and goes on.

`golden/released.tar.gz` holds what the program of commit b7ed23d wrote while it searched `golden/plain.yaml` (24 trials, workers 0): the
database as SQL, the artifacts folder, and the JSON of `front`, `status`, `show` and of an exported bundle's card. On the way
two trials failed, Ctrl-C ended the search once, and its process was killed once. Paths begin with @FOLDER@.
"""

import json
import shutil
import sqlite3
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from slimfront.search.run import run_search
from slimfront.search.study_setup import BEGAN_BEFORE
from slimfront.studies.bundles.export import export_bundle
from slimfront.studies.reports.json_documents import study_front_document, trial_document
from slimfront.studies.reports.report import status_report
from slimfront.studies.reports.status import study_status, study_summaries
from slimfront.studies.store.records import TrialRecord
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.load import load_study

GOLDEN = Path(__file__).parent / "golden"
BINARY = ("model.onnx", "weights.safetensors", "packed.safetensors", "reference.onnx", "policy.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the study file, the workload, the database and the artifacts, as if the study had been searched here."""
    for name in ("plain.yaml", "plain_workload.py"):
        shutil.copy(GOLDEN / name, tmp_path)
    with tarfile.open(GOLDEN / "released.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    dump = (tmp_path / "slimfront.sql").read_text(encoding="utf-8").replace("@FOLDER@", str(tmp_path))
    with sqlite3.connect(tmp_path / "slimfront.db") as database:
        database.executescript(dump)
    return tmp_path


@pytest.fixture
def expected(folder: Path) -> dict[str, Any]:
    """What the released program printed of the study."""
    return json.loads((folder / "expected.json").read_text(encoding="utf-8").replace("@FOLDER@", str(folder)))


@pytest.fixture
def store(folder: Path):
    with Store(f"sqlite:///{folder / 'slimfront.db'}", create=False) as opened:
        yield opened


def test_it_opens_and_shows_what_it_showed(store: Store, expected: dict[str, Any]) -> None:
    front = study_front_document(store, "plain")
    assert front.pop("reference")["name"] == "float32"
    assert front.pop("metric")["unit"] == "fraction"
    assert front == expected["front"]
    found, before = study_status(store, "plain").to_dict(), expected["status"]
    assert found.pop("metric")["metric"] == "accuracy"
    assert (found.pop("reference")["precision"], found.pop("verdict")) == ("float32", None)
    states, counts = found.pop("trials_by_state"), before.pop("trials_by_state")
    assert found.pop("reasons")[0]["trials"] == before.pop("reasons")[0]["trials"] == 15
    limits = {key: found["budget"].pop(key) for key in found["budget"].keys() - before["budget"].keys()}
    assert limits == {"trial_memory_gb": None, "checkpoint_s": 120}
    assert found == before
    assert states["pruned"] == states["stopped"] == counts["stopped"]
    assert states["failed"] + states["interrupted"] == counts["failed"]
    assert {state: states[state] for state in ("running", "complete", "infeasible")} == {
        state: counts[state] for state in ("running", "complete", "infeasible")
    }
    assert study_summaries(store)[0].trials == 24
    console = Console(record=True, width=120)
    console.print(status_report(store, "plain"))
    assert "24 of 24 trials" in console.export_text()


def test_every_kind_of_trial_has_its_state(store: Store, expected: dict[str, Any]) -> None:
    states = {3: "pruned", 6: "infeasible", 5: "failed", 8: "interrupted", 13: "interrupted"}
    for before in expected["trials"]:
        found = trial_document(store, "plain", before["trial"])
        assert found.pop("state") == states[before["trial"]]
        assert {key: found[key] for key in before if key != "state"} == {
            key: value for key, value in before.items() if key != "state"
        }
    trials = {trial.number: trial for trial in store.trials("plain")}
    assert [(number, trial.rung) for number, trial in trials.items() if trial.rung] == [(25, 1), (26, 1), (27, 1)]
    assert trials[3].rung == 0
    assert trials[2].rung is None
    assert [number for number, trial in trials.items() if trial.driver_died] == [13]
    assert [(v.metric, v.excess > 0) for v in trials[6].violations] == [("accuracy_drop", True), ("kl", False)]


def test_it_exports_the_same_bundle(store: Store, folder: Path, expected: dict[str, Any]) -> None:
    before = expected["card"]
    export_bundle(store, "plain", folder / "bundle", before["trial"], "knee")
    card = json.loads((folder / "bundle" / "card.json").read_text(encoding="utf-8"))
    assert {
        key: card[key] for key in ("trial", "policy_digest", "state", "measurements", "baseline", "test_accuracy")
    } == {key: before[key] for key in ("trial", "policy_digest", "state", "measurements", "baseline", "test_accuracy")}
    assert {name: card["files"][name] for name in BINARY} == {name: before["files"][name] for name in BINARY}


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_its_search_goes_on(store: Store, folder: Path) -> None:
    before = store.trials("plain")
    spec = load_study(str(folder / "plain.yaml"))
    spec = spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": 27})})
    run_search(spec, store.url, folder / "slimfront-artifacts", Console(quiet=True))
    after = store.trials("plain")
    old = {trial.number: trial for trial in before}
    new = [trial for trial in after if trial.number not in old]
    scale = _scale(before, after)
    assert [trial for trial in after if trial.number in old and trial.number not in (2, 24)] == [
        _rescaled(trial, scale) for trial in before if trial.number not in (2, 24)
    ]
    reference = store.get_study("plain").reference
    assert reference is not None
    assert (reference.precision, reference.reason) == ("float32", BEGAN_BEFORE)
    assert {trial.policy.float_precision for trial in new} == {"float32"}
    assert len(new) >= 3
    assert not {trial.digest for trial in new if trial.retry_of is None} & {trial.digest for trial in before}
    assert study_summaries(store)[0].trials == 27
    assert all(store.get_trial("plain", number).state == "complete" for number in store.current_front("plain").members)


def _scale(before: Sequence[TrialRecord], after: Sequence[TrialRecord]) -> dict[str, float]:
    """What milliseconds were multiplied by, where the reference was faster here than it was then, and throughput."""
    was, now = (trials[0].measurements["latency_ms"].value for trials in (before, after))
    return {"latency_ms": now / was, "throughput": was / now}


def _rescaled(trial: TrialRecord, scale: dict[str, float]) -> TrialRecord:
    measured = {
        name: replace(m, **{key: pytest.approx(getattr(m, key) * scale[name]) for key in ("value", "low", "high")})
        if name in scale
        else m
        for name, m in trial.measurements.items()
    }
    return replace(trial, measurements=measured)
