"""What a study keeps of its trials: rows in the database, contents in an artifact store."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slimfront.core.errors import ArtifactGoneError, StoreError
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.files.study_files import StudyFiles
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

Put = Callable[..., Artifact]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def store(folder: Path, make_spec: Callable[..., StudySpec]) -> Iterator[Store]:
    folder.mkdir()
    with Store(f"sqlite:///{folder / 'slimfront.db'}") as opened:
        opened.create_study(make_spec(), "fingerprint", {}, {})
        for number in range(3):
            opened.start_trial("demo", number, Policy())
        yield opened


@pytest.fixture
def files(store: Store, folder: Path) -> StudyFiles:
    files = StudyFiles(store, "demo")
    files.settle(str(folder / "artifacts"))
    return files


@pytest.fixture
def put(files: StudyFiles, folder: Path) -> Put:
    """Puts a file of a trial into the store."""

    def put_it(number: int | None, content: bytes, kind: str = "model") -> Artifact:
        path = folder / "artifacts" / "demo" / f"trial-{number}" / f"{kind}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        artifact = Artifact.of(path)
        files.put(number, kind, artifact.path, artifact.sha256, artifact.bytes, take=True)
        return artifact

    return put_it


def objects(files: StudyFiles) -> int:
    return len(list(files.contents.objects()))


def test_rows_hold_keys_and_names_and_no_folder(files: StudyFiles, store: Store, put: Put, folder: Path) -> None:
    artifact = put(0, b"content")
    (record,) = store.artifacts("demo", 0)
    assert record.path == "model.onnx"
    assert record.key == f"{artifact.sha256[:2]}/{artifact.sha256}.onnx"
    assert files.path(record).read_bytes() == b"content"
    assert not artifact.path.exists()


def test_a_later_rung_replaces_the_file_and_its_object(files: StudyFiles, put: Put) -> None:
    put(0, b"first rung")
    put(0, b"second rung")
    assert objects(files) == 1
    assert files.path(files.newest(0)["model"]).read_bytes() == b"second rung"


def test_two_trials_with_equal_bytes_share_one_object_until_the_last_lets_go(files: StudyFiles, put: Put) -> None:
    put(0, b"equal")
    put(1, b"equal")
    put(1, b"other", kind="weights")
    assert objects(files) == 2
    assert files.remove(0) == 0
    assert objects(files) == 2
    assert files.path(files.newest(0)["model"]).read_bytes() == b"equal", "the other trial keeps it"
    assert files.remove(1) == 10
    assert objects(files) == 0
    with pytest.raises(ArtifactGoneError, match=r"model.onnx is not kept since 20"):
        files.path(files.newest(0)["model"])


def test_a_trial_may_have_two_equal_files(files: StudyFiles, put: Put) -> None:
    put(0, b"equal", kind="weights")
    put(0, b"equal", kind="packed")
    files.remove(0, ["weights"])
    assert files.path(files.newest(0)["packed"]).read_bytes() == b"equal"
    assert files.remove(0) == 5


def test_figures_in_files_stay(files: StudyFiles, put: Put) -> None:
    put(0, b"{}", kind="precisions")
    put(0, b"model")
    files.remove(0)
    assert files.found(0, "precisions") is not None
    assert files.held() == []


def test_the_reference_has_files_of_its_own(files: StudyFiles, put: Put) -> None:
    put(None, b"uncompressed")
    put(0, b"uncompressed")
    files.remove(0)
    assert files.reference(files.newest(0)["model"]).read_bytes() == b"uncompressed"


def test_database_and_artifacts_may_be_moved_together(files: StudyFiles, put: Put, folder: Path, store: Store) -> None:
    put(0, b"content")
    store.close()
    moved = folder.rename(folder.with_name("elsewhere"))
    with Store(f"sqlite:///{moved / 'slimfront.db'}", create=False) as again:
        files = StudyFiles(again, "demo")
        assert files.path(files.newest(0)["model"]).read_bytes() == b"content"


def test_artifacts_that_were_moved_alone_are_found_where_the_user_says(
    files: StudyFiles, put: Put, folder: Path, store: Store, tmp_path: Path
) -> None:
    put(0, b"content")
    shutil.move(folder / "artifacts", tmp_path / "large-disk")
    with pytest.raises(ArtifactGoneError, match="no such artifact"):
        files.path(files.newest(0)["model"])
    with Store(store.url, create=False, artifacts=str(tmp_path / "large-disk")) as again:
        found = StudyFiles(again, "demo")
        assert found.path(found.newest(0)["model"]).read_bytes() == b"content"
    files.settle(str(tmp_path / "large-disk"))
    assert files.path(files.newest(0)["model"]).read_bytes() == b"content"


def test_files_are_not_left_behind_in_another_place(files: StudyFiles, put: Put, tmp_path: Path, folder: Path) -> None:
    files.settle(str(tmp_path / "new"))  # nothing was put yet
    files.settle(str(folder / "artifacts"))
    put(0, b"content")
    with pytest.raises(StoreError, match=f"are in {folder}/artifacts; move them to {tmp_path}/new, or go on with"):
        files.settle(str(tmp_path / "new"))


@pytest.mark.parametrize("path", ["/etc/hostname", "trial-00000/../../secret", "elsewhere/trial-00000/model.onnx"])
def test_a_row_of_before_removes_nothing_but_files_of_trials(
    files: StudyFiles, store: Store, folder: Path, path: str
) -> None:
    victim = folder / path
    victim.parent.mkdir(parents=True, exist_ok=True)
    (folder / "trial-00000").mkdir(exist_ok=True)
    if not victim.is_absolute() or not victim.exists():
        victim.write_bytes(b"mine")
    store.record_artifact("demo", 0, "model", str(victim), "0" * 64, 4)
    assert files.remove(0) == 0
    assert victim.exists()


def test_a_file_of_before_is_removed_where_a_search_left_it(files: StudyFiles, store: Store, folder: Path) -> None:
    old = folder / "old" / "demo" / "trial-00000" / "model.onnx"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"four")
    store.record_artifact("demo", 0, "model", str(old), "0" * 64, 4)
    assert files.remove(0) == 4
    assert not old.exists()


def test_a_key_of_a_database_row_leads_nowhere_else(files: StudyFiles, store: Store) -> None:
    store.record_artifact("demo", 0, "model", "model.onnx", "0" * 64, 4, "../../../etc/passwd")
    with pytest.raises(StoreError, match="is not the key of an artifact"):
        files.path(files.newest(0)["model"])


def test_one_that_is_killed_between_file_and_row_leaves_an_object_without_a_row(
    files: StudyFiles, store: Store, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "record_artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            put(0, b"content")
    assert (objects(files), store.artifacts("demo", 0)) == (1, [])
    put(0, b"content")
    assert objects(files) == 1
    with monkeypatch.context() as patched:
        patched.setattr(files.contents, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            files.remove(0)
    assert objects(files) == 1
    assert files.held() == [], "no row says that a file is there which is not"
