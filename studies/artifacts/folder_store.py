"""An artifact store in a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import ArtifactGoneError, ArtifactsError
from .artifact_store import StoredObject, is_key, require_key

UNFINISHED = ".part"
"""How names of files end that are being written; what a killed process leaves of them is no object."""


class FolderStore:
    """An `ArtifactStore` in a folder, which is made when something is put. Files on the same disk are moved, not copied."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.location = folder, str(folder)

    def put(self, file: Path, key: str, *, take: bool = False) -> None:
        """As `ArtifactStore.put`."""
        target = self._folder / require_key(key)
        with self._reached():
            if _is_whole(target, file):
                if take:
                    file.unlink()
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (take and _moved(file, target)):
                _copy(file, target)
                if take:
                    file.unlink()

    def fetch(self, key: str) -> Path:
        """As `ArtifactStore.fetch`; the object's own file, whose content is not read here."""
        path = self._folder / require_key(key)
        if not path.is_file() or path.is_symlink():
            raise ArtifactGoneError(f"{path}: no such artifact")
        return path

    def holds(self, key: str) -> bool:
        """As `ArtifactStore.holds`."""
        return (self._folder / require_key(key)).is_file()

    def delete(self, key: str) -> None:
        """As `ArtifactStore.delete`."""
        path = self._folder / require_key(key)
        with self._reached():
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def objects(self) -> Iterator[StoredObject]:
        """As `ArtifactStore.objects`."""
        with self._reached():
            for path in self._folder.glob("??/*"):
                key = path.relative_to(self._folder).as_posix()
                if is_key(key) and path.is_file():
                    yield StoredObject(key, path.stat().st_size)

    def free_bytes(self) -> int | None:
        """As `ArtifactStore.free_bytes`."""
        return free_bytes(self._folder)

    def require_writable(self) -> None:
        """As `ArtifactStore.require_writable`."""
        with self._reached():
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f"writable-{os.getpid()}{UNFINISHED}"
            probe.touch()
            probe.unlink()

    def remove(self) -> None:
        """As `ArtifactStore.remove`."""
        with self._reached():
            if self._folder.exists():
                shutil.rmtree(self._folder)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtifactsError(
                f"{self.location}: artifacts cannot be kept here: {error.strerror or error}"
            ) from error


def free_bytes(folder: Path) -> int:
    """Bytes that a process of this user can still write on the disk of a folder, which need not be there yet."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def _is_whole(target: Path, file: Path) -> bool:
    """Whether an object is there already, in the length that it should have."""
    return target.is_file() and target.stat().st_size == file.stat().st_size


def _moved(file: Path, target: Path) -> bool:
    """Whether a file could be moved, which is at once and needs no space; it cannot between two disks."""
    try:
        file.replace(target)
    except OSError:
        return False
    return True


def _copy(file: Path, target: Path) -> None:
    unfinished = target.with_name(f"{target.name}.{os.getpid()}{UNFINISHED}")
    try:
        shutil.copyfile(file, unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
