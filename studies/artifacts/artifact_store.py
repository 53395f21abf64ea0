"""What an artifact store is: files by the digest of their content, which the database names by keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ...core.errors import StoreError
from ...core.validation import shortened

_KEY = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}(\.[A-Za-z0-9]{1,16})?")


@dataclass(frozen=True)
class StoredObject:
    """One object of a store: where it is, and its size."""

    key: str
    bytes: int


class ArtifactStore(Protocol):
    """Files of one study by their content. Equal files are one object; no object ever changes; nothing in a store is executed.

    Ownership: the study's driver puts and deletes, any number of processes fetch meanwhile. A store counts no references: who
    deletes an object knows that no row of the database names it.

    Attributes:
        location: the folder or URL, for messages.

    Raises:
        StoreError: from every method given a key, where that is none.
        ArtifactsError: from every method, where the store cannot be reached, read or written.
    """

    location: str

    def put(self, file: Path, key: str, *, take: bool = False) -> None:
        """Store a file under the key of its content; it is there as a whole or not at all, even if the process is killed.

        Args:
            take: the file itself is moved or removed, so that none is there twice.
        """
        ...

    def fetch(self, key: str) -> Path:
        """A local file with the object's content, only to be read.

        Raises:
            ArtifactGoneError: there is no such object, or it is not what its key says.
        """
        ...

    def holds(self, key: str) -> bool:
        """Whether there is an object of that key."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...

    def objects(self) -> Iterator[StoredObject]:
        """Every object, in no order."""
        ...

    def free_bytes(self) -> int | None:
        """What can still be put; None where that is not known, as with object stores of a cloud."""
        ...

    def require_writable(self) -> None:
        """See that objects can be put and deleted."""
        ...

    def remove(self) -> None:
        """Remove the store with all that is in it."""
        ...


def key_of(sha256: str, name: str) -> str:
    """The key of a file: its digest, in a folder for the first two digits, with the last suffix of its name, which runtimes read.

    Raises:
        StoreError: not a digest, or a suffix of other characters than letters and digits.
    """
    return require_key(f"{sha256[:2]}/{sha256}{PurePosixPath(name).suffix}")


def require_key(key: str) -> str:
    """The key itself; whatever a row of a database says, it leads nowhere but into the store.

    Raises:
        StoreError: not a key.
    """
    if _KEY.fullmatch(key) is None:
        raise StoreError(f"{shortened(repr(key))} is not the key of an artifact")
    return key


def digest_in(key: str) -> str:
    """The sha256 that a key says its object has."""
    return key[3:67]


def is_key(text: str) -> bool:
    """Whether a path within a store is an object's, and not a file at work or one of somebody else."""
    return _KEY.fullmatch(text) is not None
