"""What commands share: arguments and options, the terminal, and how a command fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from ..core.console import open_console
from ..core.defaults import DEFAULT_STORAGE
from ..core.errors import SlimfrontError, UserError

if TYPE_CHECKING:
    from ..studies.store.store import Store

out = open_console()
err = open_console(stderr=True)


def complete_studies() -> list[str]:
    from ..studies.study_file.load import shipped_studies

    return shipped_studies()


def complete_targets() -> list[str]:
    from ..hardware_profiles.cards.target import shipped_targets

    return shipped_targets()


def complete_names(context: typer.Context) -> list[str]:
    """Studies of the database; none where it cannot be read, as a shell that waits for completions shows no errors."""
    try:
        with opened(context.params.get("storage") or os.environ.get("SLIMFRONT_STORAGE", DEFAULT_STORAGE)) as store:
            return [study.name for study in store.studies()]
    except SlimfrontError:
        return []


Storage = Annotated[
    str,
    typer.Option(
        envvar="SLIMFRONT_STORAGE",
        help="Database: a file for SQLite, or a URL: sqlite:///FILE, postgresql://USER@HOST/NAME.",
    ),
]
Artifacts = Annotated[
    Path, typer.Option(envvar="SLIMFRONT_ARTIFACTS", help="Folder that artifacts of trials are kept in.")
]
StudyName = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a study in the database.", autocompletion=complete_names)
]
Format = Annotated[
    Literal["table", "json"], typer.Option(help="How to print it; docs/reference/json.md describes the JSON.")
]


def fail(message: str, code: int) -> NoReturn:
    """End the command with one line."""
    err.print(f"slimfront: {' '.join(message.split())}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)


def opened(storage: str) -> Store:
    """The store of an existing database; a missing one is not created."""
    from ..studies.store.store import Store

    return Store(storage, create=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document as JSON, and nothing else."""
    from ..studies.reports.json_documents import json_text

    sys.stdout.write(json_text(document))


def write_text(path: Path, text: str) -> None:
    """Write a file that the user named."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
