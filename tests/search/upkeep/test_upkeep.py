"""Upkeep of studies that are not being searched, on a database written without a search."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from slimfront.core.errors import StoreError, StudyFileError
from slimfront.core.measurement import Measurement
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.search.sole_driver import sole_driver
from slimfront.search.trials.artifacts_folder import DiskSpace
from slimfront.search.trials.trial_files import TrialFiles
from slimfront.search.upkeep.collect import collect
from slimfront.search.upkeep.whole_studies import delete, rename
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.files.study_files import StudyFiles
from slimfront.studies.store.store import Store
from slimfront.studies.store.trial_state import TrialState
from slimfront.studies.study_file.spec import StudySpec

FIGURES = {"accuracy_drop": (0.0, "fraction"), "latency_ms": (1.0, "ms")}


def put(files: StudyFiles, folder: Path, number: int, kind: str, content: bytes) -> None:
    path = folder / f"{kind}.onnx"
    path.write_bytes(content)
    artifact = Artifact.of(path)
    files.put(number, kind, artifact.path, artifact.sha256, artifact.bytes, take=True)


@pytest.fixture
def store(tmp_path: Path, tiny_spec: Callable[..., StudySpec]) -> Iterator[Store]:
    """Three trials with files of 10 bytes each, the last one on the front."""
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as opened:
        opened.create_study(tiny_spec(), "fingerprint", {}, {})
        files = StudyFiles(opened, "tiny")
        files.settle(str(tmp_path / "artifacts"))
        for number in range(3):
            opened.start_trial("tiny", number, Policy())
            figures = [Measurement.exact(name, value, "x") for name, (value, _) in FIGURES.items() if name == "flops"]
            figures += [Measurement(name, v, v, v, unit, 1, "x") for name, (v, unit) in FIGURES.items()]
            opened.add_measurements("tiny", number, figures)
            put(files, tmp_path, number, "model", f"model {number:04d}".encode())
            put(files, tmp_path, number, "precisions", b"{}")
            opened.finish_trial("tiny", number, TrialState.COMPLETE)
        opened.save_front("tiny", [2], 0.5)
        yield opened


def held(store: Store) -> list[int]:
    return [number for number, _ in StudyFiles(store, "tiny").held()]


def test_what_is_collected_is_what_no_row_names_and_what_the_study_does_not_keep(store: Store, tmp_path: Path) -> None:
    files = StudyFiles(store, "tiny")
    orphan, half = b"put, and killed before its row was written", tmp_path / "artifacts" / "tiny" / "trial-00001"
    put(files, tmp_path, 0, "weights", orphan)
    store.remove_artifacts("tiny", 0, ["weights"])
    half.mkdir(parents=True)
    (half / "model.onnx").write_bytes(b"half made")
    (half / "trial.log").write_text("for readers")
    dry = collect(store, "tiny", dry_run=True)
    assert (dry.files, dry.bytes) == (4, 10 + 10 + len(orphan) + len(b"half made"))
    assert held(store) == [0, 1, 2]
    assert collect(store, "tiny") == dry
    assert held(store) == [2]
    assert [each.bytes for each in files.contents.objects() if each.bytes != 2] == [10]
    assert files.found(0, "precisions") is not None
    assert [path.name for path in half.iterdir()] == ["trial.log"]
    assert collect(store, "tiny").files == 0, "a second time there is nothing"


def test_files_that_another_trial_has_too_are_taken_back_and_outlive_it(store: Store, tmp_path: Path) -> None:
    files, front = StudyFiles(store, "tiny"), SimpleNamespace(points=[SimpleNamespace(trial=1)])
    for number in (0, 1):
        put(files, tmp_path, number, "model", b"of 0 and 1")
    kept = TrialFiles(files, tmp_path, store.get_study("tiny").spec, front)
    kept.end(2, [])
    assert held(store) == [1]
    front.points = [SimpleNamespace(trial=0)]  # as where one more timing makes 0 the better
    assert kept.take_back(0)
    assert not kept.take_back(2), "what 2 had nobody else has"
    kept.finish()
    assert held(store) == [0]
    assert files.path(files.newest(0)["model"]).read_bytes() == b"of 0 and 1"


def test_a_study_that_keeps_all_loses_only_what_is_lost_already(store: Store) -> None:
    assert collect(store, "tiny", "all").files == 0
    assert collect(store, "tiny", "none").files == 3
    assert held(store) == []


def test_nothing_is_touched_while_the_study_is_searched(store: Store) -> None:
    with Store(store.url, create=False) as other, sole_driver(other, "tiny"):
        for use in (collect, delete, lambda store, name: rename(store, name, "other")):
            with pytest.raises(StoreError, match="is being searched by another process"):
                use(store, "tiny")
    assert held(store) == [0, 1, 2]


def test_a_renamed_study_is_the_same_under_another_name(store: Store) -> None:
    rename(store, "tiny", "other")
    assert (store.has_study("tiny"), store.get_study("other").spec.study) == (False, "other")
    files = StudyFiles(store, "other")
    assert files.path(files.newest(2)["model"]).read_bytes() == b"model 0002"
    for wrong, error in (("other", StoreError), ("a/b", StudyFileError), ("..", StudyFileError)):
        with pytest.raises(error):
            rename(store, "other", wrong)


def test_a_deleted_study_leaves_nothing(store: Store, tmp_path: Path) -> None:
    delete(store, "tiny")
    assert store.studies() == []
    assert not (tmp_path / "artifacts" / "tiny").exists()
    with pytest.raises(StoreError, match="no study 'tiny'"):
        delete(store, "tiny")


def test_a_trial_begins_only_where_the_disk_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stub of the disk's free bytes."""
    disk = DiskSpace(tmp_path, 3_000_000)
    monkeypatch.setattr("slimfront.search.trials.artifacts_folder.free_bytes", lambda _: 8_000_000)
    assert disk.problem(running=1) is None
    problem = disk.problem(running=2)
    assert problem is not None
    assert "8.0 MB are free, and another trial may need 10.0 MB; make room" in problem
    assert "at most 30.0 MB for 10 trials; 8.0 MB are free" in disk.forecast("all", 10)
    assert "the teacher's outputs take up to 2.0 MB; 8.0 MB are free" in disk.forecast("front", 10, 2_000_000)


def test_stored_outputs_of_a_teacher_are_collected(store: Store, tmp_path: Path) -> None:
    before = collect(store, "tiny")
    stored = tmp_path / "artifacts" / "tiny" / "checkpoints" / "teacher" / "a.records"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(bytes(1000))
    found = collect(store, "tiny", before.keep)
    assert (found.files, found.bytes, stored.parent.exists()) == (1, 1000, False)
