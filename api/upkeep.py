"""Upkeep of a database: files of no use removed, studies deleted and renamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.defaults import DEFAULT_STORAGE
from ..studies.store.store import Store
from ..studies.terminal import Shown, rows_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..search.upkeep.collect import Collected
    from ..studies.study_file.spec import Keep


@dataclass(frozen=True)
class Collection(Shown):
    """What was removed of each study, or would be."""

    studies: Sequence[Collected]
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """The document that `slimfront gc --format json` prints."""
        return {"dry_run": self.dry_run, "studies": [study.to_dict() for study in self.studies]}

    def __rich__(self) -> RenderableType:
        rows = ((each.study, each.keep, f"{each.files:,}", f"{each.bytes / 1e6:,.2f}") for each in self.studies)
        return rows_table(("study", "keep", "files>", "MB>"), rows)


def gc(
    name: str | None = None,
    *,
    storage: str = DEFAULT_STORAGE,
    artifacts: str | Path | None = None,
    keep: Keep | None = None,
    dry_run: bool = False,
) -> Collection:
    """Remove files that are of no use: those of trials that a study does not keep, and what killed processes left.

    Policies and figures stay, and `Study.export` makes the files of any trial again.

    Args:
        name: of the study; all of the database where none is given.
        storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`.
        artifacts: folder or URL that files were moved to, if they were.
        keep: "front", "all" or "none" in place of what each study says.
        dry_run: say what would be removed, and remove nothing.

    Raises:
        UserError: no such database or study, or it is being searched.
    """
    from ..search.upkeep.collect import collect  # imports torch, optuna

    with Store(storage, create=False, artifacts=None if artifacts is None else str(artifacts)) as store:
        names = [study.name for study in store.studies()] if name is None else [name]
        return Collection([collect(store, each, keep, dry_run=dry_run) for each in names], dry_run)


def delete(name: str, *, storage: str = DEFAULT_STORAGE, artifacts: str | Path | None = None) -> None:
    """Delete a study: its trials, figures and files.

    Args:
        storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`.
        artifacts: folder or URL that its files were moved to, if they were.

    Raises:
        UserError: no such database or study, or it is being searched.
    """
    from ..search.upkeep import whole_studies  # imports optuna

    with Store(storage, create=False, artifacts=None if artifacts is None else str(artifacts)) as store:
        whole_studies.delete(store, name)


def rename(old: str, new: str, *, storage: str = DEFAULT_STORAGE) -> None:
    """Give a study another name, under which its study file continues it; its files stay where they are.

    Args:
        storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`.

    Raises:
        UserError: no such database or study, one of the new name is there, or it is being searched.
    """
    from ..search.upkeep import whole_studies  # as above

    with Store(storage, create=False) as store:
        whole_studies.rename(store, old, new)
