"""The contract that every artifact store keeps: in a folder, over fsspec, and on a local S3 server."""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slimfront.core.errors import ArtifactGoneError, ArtifactsError, StoreError, UserError
from slimfront.studies.artifacts.artifact_store import ArtifactStore, is_key, key_of, require_key
from slimfront.studies.artifacts.open_store import new_prefix, open_artifact_store

BUCKET = "slimfront-tests"


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A bucket of moto's S3 server in this process."""
    pytest.importorskip("s3fs", reason="no s3fs: pip install 'slimfront[s3]'")
    server = pytest.importorskip("moto.server", reason="no moto: pip install 'slimfront[s3-test]'")
    boto3 = pytest.importorskip("boto3")
    running = server.ThreadedMotoServer(port=0, ip_address="127.0.0.1")
    running.start()
    host, port = running.get_host_and_port()
    given = {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        for name, value in given.items():
            patched.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}/runs"
    running.stop()


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        return str(tmp_path / "artifacts")
    if request.param == "s3":
        return request.getfixturevalue("s3_url")
    return f"file://{tmp_path}/artifacts" if request.param == "file" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def prefix() -> str:
    return new_prefix("demo")


@pytest.fixture
def store(root: str, prefix: str) -> ArtifactStore:
    return open_artifact_store(root, prefix)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Writes a file; the file and its key."""

    def written(content: bytes, name: str = "model.onnx") -> tuple[Path, str]:
        path = tmp_path / "made" / uuid.uuid4().hex / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return path, key_of(hashlib.sha256(content).hexdigest(), name)

    return written


Write = Callable[..., tuple[Path, str]]


def test_what_is_put_is_fetched_and_no_file_is_there_twice(store: ArtifactStore, write: Write) -> None:
    file, key = write(b"weights" * 1000)
    store.put(file, key, take=True)
    assert not file.exists()
    assert store.holds(key)
    assert store.fetch(key).read_bytes() == b"weights" * 1000
    assert store.fetch(key).suffix == ".onnx"


def test_a_file_that_is_not_taken_stays_and_shares_nothing_with_its_object(store: ArtifactStore, write: Write) -> None:
    file, key = write(b"reference")
    store.put(file, key)
    file.write_bytes(b"overwrites")
    assert store.fetch(key).read_bytes() == b"reference"


def test_equal_files_are_one_object(store: ArtifactStore, write: Write) -> None:
    for _ in range(2):
        store.put(*write(b"equal"), take=True)
    store.put(*write(b"other"), take=True)
    assert sorted(each.bytes for each in store.objects()) == [5, 5]
    assert len({each.key for each in store.objects()}) == 2


def test_what_is_deleted_is_gone_and_may_be_deleted_again(store: ArtifactStore, write: Write) -> None:
    file, key = write(b"dominated")
    store.put(file, key)
    store.fetch(key)
    store.delete(key)
    store.delete(key)
    assert not store.holds(key)
    assert list(store.objects()) == []
    with pytest.raises(ArtifactGoneError, match="no such artifact"):
        store.fetch(key)
    store.put(file, key)
    assert store.fetch(key).read_bytes() == b"dominated"


def test_an_object_of_half_a_file_is_put_again(store: ArtifactStore, root: str, prefix: str, write: Write) -> None:
    """What a process leaves that is killed while it writes, on systems where files appear before they are whole."""
    file, key = write(b"whole content")
    half, _ = write(b"whole")
    store.put(half, key)
    store.put(file, key)
    assert store.fetch(key).read_bytes() == b"whole content"


def test_a_store_that_is_opened_again_has_what_was_put(
    store: ArtifactStore, root: str, prefix: str, write: Write
) -> None:
    file, key = write(b"kept")
    store.put(file, key, take=True)
    assert open_artifact_store(root, prefix).fetch(key).read_bytes() == b"kept"
    other = open_artifact_store(root, new_prefix("demo"))
    assert not other.holds(key), "each study has a part of its own"


def test_a_removed_store_is_empty_and_may_be_written_again(store: ArtifactStore, write: Write) -> None:
    file, key = write(b"study")
    store.put(file, key)
    store.remove()
    store.remove()
    assert list(store.objects()) == []
    store.put(file, key)
    assert store.holds(key)


def test_writing_is_tried_before_anything_is_measured(store: ArtifactStore) -> None:
    store.require_writable()
    assert list(store.objects()) == []
    assert store.free_bytes() is None or store.free_bytes() > 0


@pytest.mark.parametrize("key", ["../../etc/passwd", "ab/../../x", "/etc/passwd", "ab/abc", "", "ab/" + "g" * 64])
def test_no_key_leads_out_of_the_store(store: ArtifactStore, tmp_path: Path, key: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for use in (store.fetch, store.holds, store.delete, lambda key: store.put(file, key)):
        with pytest.raises(StoreError, match="is not the key of an artifact"):
            use(key)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=90) | st.from_regex(r"[0-9a-f]{2}/[0-9a-f]{64}(\.\w{1,4})?", fullmatch=True))
def test_a_key_is_one_path_below_the_store(text: str) -> None:
    if not is_key(text):
        with pytest.raises(StoreError):
            require_key(text)
        return
    below = Path("/store", require_key(text))
    assert os.path.normpath(below) == str(below)
    assert below.parent.parent == Path("/store")
    assert below.name.startswith(below.parent.name)


@pytest.mark.parametrize(
    "prefix", ["../x/objects-01234567", "/etc/objects-01234567", "demo/objects-0", "../objects-01234567", ""]
)
def test_no_prefix_leads_elsewhere(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(StoreError, match="is not where a study keeps its artifacts"):
        open_artifact_store(str(tmp_path), prefix)


def test_an_object_that_was_changed_on_a_server_is_not_handed_out(tmp_path: Path, write: Write, prefix: str) -> None:
    store = open_artifact_store(f"file://{tmp_path}/artifacts", prefix)
    file, key = write(b"as measured")
    store.put(file, key)
    (tmp_path / "artifacts" / prefix / key).write_bytes(b"as tampered")
    with pytest.raises(ArtifactGoneError, match="its sha256 changed"):
        store.fetch(key)


def test_what_a_killed_process_left_is_no_object(tmp_path: Path, prefix: str, write: Write) -> None:
    store = open_artifact_store(str(tmp_path), prefix)
    file, key = write(b"x")
    store.put(file, key)
    (tmp_path / prefix / f"{key}.77.part").write_bytes(b"half")
    assert [each.key for each in store.objects()] == [key]


def test_a_link_in_a_store_is_not_followed(tmp_path: Path, prefix: str, write: Write) -> None:
    _, key = write(b"x")
    path = tmp_path / prefix / key
    path.parent.mkdir(parents=True)
    path.symlink_to("/etc/hostname")
    with pytest.raises(ArtifactGoneError):
        open_artifact_store(str(tmp_path), prefix).fetch(key)


@pytest.mark.parametrize("url", ["reference://x", "simplecache::s3://bucket", "http://host/x", "zip://a::file://b"])
def test_schemes_that_wrap_others_or_only_read_are_refused(url: str, prefix: str) -> None:
    with pytest.raises(UserError, match="artifacts lie in a folder or at s3://"):
        open_artifact_store(url, prefix)


def test_a_server_that_cannot_be_reached_is_one_line(s3_url: str, prefix: str, write: Write) -> None:
    file, key = write(b"x")
    with pytest.raises(ArtifactsError, match="cannot be used") as error:
        open_artifact_store("s3://no-such-bucket-here", prefix).put(file, key)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, prefix: str, write: Write) -> None:
    (tmp_path / "file").write_bytes(b"")
    file, key = write(b"x")
    with pytest.raises(ArtifactsError, match="artifacts cannot be kept here: "):
        open_artifact_store(str(tmp_path / "file"), prefix).put(file, key)
