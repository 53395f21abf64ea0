"""The folder of a study file on its way to the nodes of a cluster: the workload's code, and the files next to it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...core.errors import UserError

MOST_BYTES = 400 * 2**20
"""The bytes of a folder that is sent to nodes: Ray takes 500 MiB, compressed."""

FOLDERS = (".git", ".venv", "venv", "__pycache__")
FILES = ("*.db", "*.db-*", "*.sqlite", "*.sqlite3")
"""What no worker needs: histories and environments, and databases."""

IGNORE_FILE = ".rayignore"
"""What else is not sent, one pattern a line as in a .gitignore; Ray reads it."""


def runtime_env(folder: Path, artifacts: Path) -> dict[str, Any]:
    """The environment of every worker: a copy of the study file's folder as its current folder.

    Args:
        artifacts: a folder that is not sent.

    Raises:
        UserError: the folder is too large to be sent.
    """
    folder, artifacts = folder.resolve(), artifacts.resolve()
    if not (folder / IGNORE_FILE).is_file():
        _require_small(folder, artifacts)
    inside = [f"/{artifacts.relative_to(folder)}/"] if folder in artifacts.parents else []
    return {"working_dir": str(folder), "excludes": [*(f"{name}/" for name in FOLDERS), *FILES, *inside]}


def _require_small(folder: Path, artifacts: Path) -> None:
    sizes: Counter[str] = Counter()
    for path in _sent(folder, artifacts):
        sizes[path.relative_to(folder).parts[0]] += path.stat().st_size
    if sizes.total() > MOST_BYTES:
        largest = ", ".join(f"{name} ({_mib(size)})" for name, size in sizes.most_common(3))
        raise UserError(
            f"{folder}: the study file's folder is sent to the nodes of the cluster and may have {_mib(MOST_BYTES)}; it has "
            f"{_mib(sizes.total())}: {largest}; move data that every node has a copy of elsewhere, or list it in {IGNORE_FILE}"
        )


def _sent(folder: Path, artifacts: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in FOLDERS and Path(place, name) != artifacts]
        sent = (Path(place, name) for name in files if not any(fnmatch(name, pattern) for pattern in FILES))
        yield from (path for path in sent if path.is_file())


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
