"""What commands share: arguments and options, the terminal, and how a command fails."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from ..core.console import open_console
from ..core.defaults import DEFAULT_STORAGE
from ..core.errors import SlimfrontError

if TYPE_CHECKING:
    from ..studies.terminal import Shown

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
    from .. import api

    try:
        found = api.studies(context.params.get("storage") or os.environ.get("SLIMFRONT_STORAGE", DEFAULT_STORAGE))
        return [study.study for study in found.studies]
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
    str | None,
    typer.Option(
        envvar="SLIMFRONT_ARTIFACTS",
        metavar="FOLDER|URL",
        help="Where files of trials are kept: a folder, or a URL such as s3://BUCKET/PATH. By default where the study file or "
        "the study in the database says, else ./slimfront-artifacts.",
    ),
]
StudyName = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a study in the database.", autocompletion=complete_names)
]
Format = Annotated[
    Literal["table", "json"], typer.Option(help="How to print it; docs/reference/json.md describes the JSON.")
]


def fail(message: str, code: int) -> NoReturn:
    """End the command with one line."""
    with suppress(OSError):  # a terminal that was closed takes no line; the exit code is left
        err.print(f"slimfront: {' '.join(message.split())}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)


def print_result(result: Shown, format: str) -> None:
    """Print what a command found: as a table, or its document as JSON and nothing else."""
    if format == "table":
        out.print(result)
    else:
        print_json(result.to_dict())


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document as JSON, and nothing else."""
    sys.stdout.write(json_text(document))


def json_text(document: Mapping[str, Any]) -> str:
    """A document as indented JSON; a number that is not finite becomes null, as JSON has none."""
    return json.dumps(_finite(document), indent=2) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
