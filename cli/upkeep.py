"""`gc`, `delete` and `rename`: upkeep of a database."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from ..core.defaults import DEFAULT_STORAGE
from ..core.errors import UserError
from .options import Artifacts, Format, Storage, StudyName, complete_names, out, print_json, print_result


def gc(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Study; all of the database by default.", autocompletion=complete_names),
    ] = None,
    keep: Annotated[
        Literal["front", "all", "none"] | None,
        typer.Option(help="Which trials keep their files, in place of what each study says."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    format: Format = "table",
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Remove files that are of no use: those that a study does not keep, and what killed processes left.

    Policies and figures stay, and `slimfront export` makes the files of any trial again.
    """
    from .. import api

    print_result(api.gc(name, storage=storage, artifacts=artifacts, keep=keep, dry_run=dry_run), format)


def delete(
    name: StudyName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    format: Format = "table",
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Delete a study: its trials, figures and files."""
    from .. import api

    with api.Study.open(storage, name) as study:
        trials = study.status().trials
    if not yes:
        if format == "json" or not sys.stdin.isatty():
            raise UserError(f"{name} has {trials} trials; --yes deletes them without asking")
        typer.confirm(f"Delete {name} with {trials} trials?", abort=True)
    api.delete(name, storage=storage, artifacts=artifacts)
    if format == "json":
        print_json({"deleted": name, "trials": trials})
    else:
        out.print(f"{name} deleted with {trials} trials", highlight=False)


def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Name of the study.", autocompletion=complete_names)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    format: Format = "table",
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Give a study another name."""
    from .. import api

    api.rename(old, new, storage=storage)
    if format == "json":
        print_json({"old": old, "new": new})
    else:
        out.print(f"{old} is now {new}; write `study: {new}` in its study file to continue it", highlight=False)
