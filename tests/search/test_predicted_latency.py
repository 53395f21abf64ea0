"""A search on a target that cannot be reached: a table fitted by real timings, read where no bench may run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from slimfront.core.errors import StoreError, StudyFileError, TargetError
from slimfront.hardware_profiles.cards.target import card_text, load_target
from slimfront.search import measured_table as latency_table
from slimfront.search import study_setup
from slimfront.search.cluster.timers import timer_of
from slimfront.search.driver import Search
from slimfront.search.measured_table import add_table
from slimfront.search.run import run_search
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.bundles.export import export_bundle
from slimfront.studies.bundles.verify import verify_bundle
from slimfront.studies.files.executed import executed_precisions
from slimfront.studies.reports.report import front_table
from slimfront.studies.store.store import Store

pytestmark = pytest.mark.slow

STUDY = {
    "study": "tiny",
    "workload": f"{Path(__file__).with_name('tiny_workload.py')}:workload",
    "target": "cpu-openvino",
    "objectives": ["accuracy_drop", "latency_ms"],
    "budget": {"trials": 1},
    "space": {"weight_bits": [4, 8, 32], "activation_bits": [8, 32], "channel_sparsity": [0, 0.5]},
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A card with a table fitted to six policies of the tiny study, by a bench that waits for nobody else's."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SLIMFRONT_BENCH_LOCK", str(folder / "bench.lock"))
        patched.setattr(latency_table, "POLICIES", 6)
        patched.setattr(latency_table, "TIMING_SECONDS", 0.2)
        target, database = load_target("cpu-openvino"), f"sqlite:///{folder}/cards.db"
        measured = add_table(target, str(folder / "study.yaml"), database, Console(quiet=True))
    return card_text(measured.model_copy(update={"predict": True}))


@pytest.fixture
def card(fitted: str, tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere.yaml"
    path.write_text(fitted)
    return path


def test_a_predicted_search_never_times_and_says_that_it_predicts(card, tiny_spec, tmp_path, monkeypatch):
    monkeypatch.setattr("slimfront.hardware_profiles.bench.bench.Bench._call", None)  # any timing fails
    said, url = io.StringIO(), f"sqlite:///{tmp_path}/study.db"
    spec = tiny_spec(target=str(card), objectives=["accuracy_drop", "latency_ms", "packed_bytes"])
    run_search(spec, url, tmp_path / "artifacts", Console(file=said, width=200))
    assert "latency is predicted by the table in the target's card" in said.getvalue()
    with Store(url) as store:
        trials = store.trials("tiny")
        assert [trial.state for trial in trials] == ["complete"] * 4
        for trial in trials:
            assert trial.measurements["latency_ms"].is_predicted
            assert trial.measurements["speedup"].is_predicted
            assert not trial.measurements["accuracy"].is_predicted
            assert "latency_p50_ms" not in trial.measurements
            assert executed_precisions(store, "tiny", trial.number) == {}  # those of this machine are not the target's
        uncompressed = next(trial for trial in trials if trial.policy.is_uncompressed)
        assert uncompressed.measurements["accuracy"].value == store.get_study("tiny").baseline["accuracy"].value
        shown = io.StringIO()
        Console(file=shown, width=200).print(front_table(store, "tiny"))
        export_bundle(store, "tiny", tmp_path / "bundle", trial=None, rule="knee")
    assert "^ predicted by a latency table, median error" in shown.getvalue()
    notes = json.loads((tmp_path / "bundle" / "card.json").read_text())["notes"]
    assert any(
        note.startswith("Predicted: latency_ms, throughput, speedup, speedup_float32. They were predicted by")
        for note in notes
    )
    verdicts = {check.claim: check.holds for check in verify_bundle(tmp_path / "bundle", timer_of)}
    assert (verdicts.pop("speedup"), verdicts.pop("accuracy")) == (None, None)
    assert all(verdicts.values())


def test_measured_and_predicted_latencies_are_never_mixed(card, tiny_spec, tmp_path):
    as_it_was = card.read_text()
    with Store(f"sqlite:///{tmp_path}/study.db") as store:
        card.write_text(as_it_was.replace("batch: 1", "batch: 2"))
        study_setup._store_study(prepare(tiny_spec(target=str(card))), store)  # of a run that ended before its baseline
        card.write_text(as_it_was)
        Search(prepare(tiny_spec(target=str(card))), store, tmp_path / "artifacts")
        problem = "^study 'tiny' has {} and its target's card now "
        for changed, found in (
            (("predict: true", "predict: false"), problem.format("predicted latencies") + "asks for measured"),
            (("batch: 1", "batch: 2"), problem.format("latencies of batch 1") + "says 2, "),
        ):
            card.write_text(as_it_was.replace(*changed))
            with pytest.raises(StoreError, match=found):
                Search(prepare(tiny_spec(target=str(card))), store, tmp_path / "artifacts")


def test_a_table_of_another_model_and_a_promise_without_a_table_are_refused(card, tiny_spec, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(card.read_text().replace("stem", "trunk"))
    with pytest.raises(StudyFileError, match="was fitted to another model"):
        prepare(tiny_spec(target=str(other)))
    target = load_target("cpu-openvino")
    other.write_text(card_text(target).replace("predict: false", "predict: true"))
    with pytest.raises(TargetError, match="predict: needs a latency_table"):
        load_target(str(other))
