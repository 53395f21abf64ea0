"""An artifact store behind a URL, over whatever file system `fsspec` has for its scheme."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import ArtifactGoneError, ArtifactsError, SlimfrontError, UserError
from ...core.interrupts import raise_if_interrupted
from ...core.texts import one_line, redacted
from .artifact_store import StoredObject, digest_in, is_key, require_key
from .folder_store import UNFINISHED

EXTRAS = {
    "s3": "slimfront[s3]",
    "gs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "sftp": "paramiko",
    "file": "fsspec",
    "memory": "fsspec",
}
"""The schemes that may be used, and what to install for each. Others of fsspec wrap one another and read what they point to."""

WITH_FOLDERS = ("file", "memory", "sftp")
"""Schemes of systems whose folders have to be made."""


class UrlStore:
    """An `ArtifactStore` under a URL.

    Args:
        url: such as `s3://bucket/runs/digits-demo`; credentials are those that the scheme's library finds by itself.
        cache: local folder of what was fetched.

    Raises:
        UserError: a scheme that is unknown or whose library is not installed.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self._system, self._path = _opened(url)
        self._cache, self.location, self._scheme = cache, redacted(url), url.partition("://")[0]

    def put(self, file: Path, key: str, *, take: bool = False) -> None:
        """As `ArtifactStore.put`."""
        target = self._at(key)
        with self._reached():
            if self._bytes(target) != file.stat().st_size:  # not there, or what a killed process left of it
                self._make_folder(target.rpartition("/")[0])
                self._system.put_file(str(file), target)
        if take:
            file.unlink()

    def fetch(self, key: str) -> Path:
        """As `ArtifactStore.fetch`; downloaded once, and held against its key then."""
        path = self._cache / require_key(key)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
            try:
                self._download(key, unfinished)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
        return path

    def holds(self, key: str) -> bool:
        """As `ArtifactStore.holds`."""
        with self._reached():
            return self._bytes(self._at(key)) is not None

    def delete(self, key: str) -> None:
        """As `ArtifactStore.delete`."""
        target = self._at(key)
        (self._cache / key).unlink(missing_ok=True)
        with self._reached():
            if self._bytes(target) is not None:
                self._system.rm_file(target)

    def objects(self) -> Iterator[StoredObject]:
        """As `ArtifactStore.objects`."""
        with self._reached():
            self._system.invalidate_cache()
            found: dict[str, Any] = self._system.find(self._path, detail=True)
        for path, about in found.items():
            key = "/".join(path.split("/")[-2:])
            if is_key(key):
                yield StoredObject(key, about["size"])

    def free_bytes(self) -> int | None:
        """As `ArtifactStore.free_bytes`: not known."""
        return None

    def require_writable(self) -> None:
        """As `ArtifactStore.require_writable`: a small file is put and removed."""
        probe = f"{self._path}/writable-{os.getpid()}{UNFINISHED}"
        with self._reached():
            self._make_folder(self._path)
            self._system.pipe_file(probe, b"slimfront")
            self._system.rm_file(probe)

    def remove(self) -> None:
        """As `ArtifactStore.remove`."""
        for stored in list(self.objects()):
            self.delete(stored.key)

    def _at(self, key: str) -> str:
        return f"{self._path}/{require_key(key)}"

    def _make_folder(self, path: str) -> None:
        """Make a folder where the system has such; elsewhere this would make a bucket of a name that is misspelt."""
        if self._scheme in WITH_FOLDERS:
            self._system.makedirs(path, exist_ok=True)

    def _bytes(self, path: str) -> int | None:
        """The size of what lies at a path; None where nothing does."""
        try:
            self._system.invalidate_cache()
            return self._system.info(path)["size"]
        except FileNotFoundError:
            return None

    def _download(self, key: str, to: Path) -> None:
        with self._reached():
            if self._bytes(self._at(key)) is None:
                raise ArtifactGoneError(f"{self.location}/{key}: no such artifact")
            self._system.get_file(self._at(key), str(to))
        with to.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest_in(key):
                raise ArtifactGoneError(f"{self.location}/{key} is not what was put: its sha256 changed")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except SlimfrontError:
            raise
        except Exception as error:  # each file system raises what its library does
            raise_if_interrupted(error)
            problem = one_line(f"{type(error).__name__}: {error}")
            raise ArtifactsError(f"{self.location}: this artifact store cannot be used: {problem}") from error


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    scheme = url.partition("://")[0]
    if scheme not in EXTRAS:
        raise UserError(
            f"{redacted(url)}: artifacts lie in a folder or at {', '.join(f'{s}://' for s in EXTRAS)}, not {scheme}://"
        )
    from fsspec.core import url_to_fs  # only here: folders need none of it

    try:
        system, path = url_to_fs(url.rstrip("/"))
    except ImportError as error:
        raise UserError(f"{redacted(url)}: {scheme}:// needs a library: pip install '{EXTRAS[scheme]}'") from error
    except Exception as error:  # credentials that are malformed, and the like
        raise_if_interrupted(error)
        raise UserError(f"{redacted(url)}: {one_line(str(error))}") from error
    return system, path.rstrip("/")
