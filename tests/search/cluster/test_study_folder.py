"""What of a study file's folder is sent to the nodes of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from slimfront.core.errors import UserError
from slimfront.search.cluster import study_folder
from slimfront.search.cluster.study_folder import IGNORE_FILE, runtime_env


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def test_a_folder_that_is_too_large_names_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_folder, "MOST_BYTES", 2**20)
    write(tmp_path / "net.py", 1000)
    for unsent in (".git/pack", "old.db", "sub/old.db-wal", "artifacts/study/model.onnx", "__pycache__/net.pyc"):
        write(tmp_path / unsent, 2**21)
    environment = runtime_env(tmp_path, tmp_path / "artifacts")
    assert environment["working_dir"] == str(tmp_path)
    assert {".git/", "*.db", "/artifacts/"} <= set(environment["excludes"])
    write(tmp_path / "data" / "images.npy", 3 * 2**20)
    with pytest.raises(UserError, match=r"may have 1 MiB; it has 3 MiB: data \(3 MiB\), net\.py \(0 MiB\);"):
        runtime_env(tmp_path, tmp_path / "artifacts")
    (tmp_path / IGNORE_FILE).write_text("data/\n")
    runtime_env(tmp_path, tmp_path / "artifacts")  # Ray leaves it out
