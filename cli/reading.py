"""`studies`, `status`, `show`, `front` and `audit`: what the database holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..core.defaults import DEFAULT_STORAGE
from ..core.documents import write_file
from .options import Format, Storage, StudyName, err, json_text, out, print_json, print_result
from .usage import whole_number

if TYPE_CHECKING:
    from ..api import Study


def studies(format: Format = "table", storage: Storage = DEFAULT_STORAGE) -> None:
    """List the studies in the database."""
    from .. import api

    print_result(api.studies(storage), format)


def status(name: StudyName, format: Format = "table", storage: Storage = DEFAULT_STORAGE) -> None:
    """Report how far a study is: trials by state, front, and why trials failed."""
    from ..api import Study

    with Study.open(storage, name) as study:
        if format == "json":
            print_json(study.status().to_dict())
        else:
            out.print(study)


def show(
    name: StudyName,
    trial: Annotated[int, typer.Argument(parser=whole_number, metavar="TRIAL", help="Number of the trial.")],
    format: Format = "table",
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show one trial: its policy per layer and every measurement."""
    from ..api import Study

    with Study.open(storage, name) as study:
        print_result(study.show(trial), format)


def front(
    name: StudyName,
    format: Annotated[Literal["table", "json", "csv"], typer.Option(help="How to print it.")] = "table",
    out_file: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Print the Pareto front of a study."""
    from ..api import Study

    with Study.open(storage, name) as study:
        if out_file is not None:
            write_file(out_file, _front_text(study, format))
        elif format == "csv":
            sys.stdout.write(_front_text(study, format))
        else:
            print_result(study.show_front(), format)


def audit(
    name: StudyName,
    format: Format = "table",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the figure to this file.")] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show how FLOPs, BOPs and sizes rank the trials of a study against their measured latency."""
    from ..api import Study

    with Study.open(storage, name) as study:
        audited = study.audit()
    print_result(audited, format)
    if plot is not None:
        write_file(plot, audited.figure().to_html())
        err.print(f"figure written to {plot}", highlight=False)


def _front_text(study: Study, format: str) -> str:
    """The front as a file holds it."""
    if format == "csv":
        return study.front().to_csv(index=False)
    shown = study.show_front()
    return json_text(shown.to_dict()) if format == "json" else str(shown)
