"""Files that were not kept and are made again, held against what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import UserError
from ..store.records import ArtifactRecord


@dataclass(frozen=True)
class Remade:
    """What became of a trial's files that were made again from its policy.

    Attributes:
        kinds: all of them; `differing` are those whose content is not what was measured, by sha256.
    """

    kinds: Sequence[str]
    differing: Sequence[str]

    @classmethod
    def of(cls, made: Mapping[str, Path], records: Mapping[str, ArtifactRecord]) -> Remade:
        """Hold files by kind against the records of those that were measured."""
        differing = [kind for kind, path in made.items() if file_digest(path) != records[kind].sha256]
        return cls(list(made), differing)

    @property
    def words(self) -> str:
        """One sentence for a user."""
        again = "Its files were not kept and are made again from its policy"
        if not self.differing:
            return f"{again}; each has the sha256 of the one that was measured."
        parts = " and ".join(self.differing)
        return (
            f"{again}; of these the sha256 is not the one that was measured: {parts}. `slimfront verify` measures anew."
        )


def file_digest(path: Path) -> str:
    """The sha256 of a file's content.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
