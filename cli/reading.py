"""`studies`, `status`, `show`, `front` and `audit`: what the database holds."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ..core.console import UNCUT
from ..core.defaults import DEFAULT_STORAGE
from .options import Format, Storage, StudyName, err, opened, out, print_json, write_text
from .usage import whole_number


def studies(format: Format = "table", storage: Storage = DEFAULT_STORAGE) -> None:
    """List the studies in the database."""
    from ..studies.reports.json_documents import studies_document
    from ..studies.reports.report import studies_table

    with opened(storage) as store:
        if format == "json":
            print_json(studies_document(store))
        else:
            out.print(studies_table(store))


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
    from ..studies.reports.json_documents import trial_document
    from ..studies.reports.report import trial_report

    with opened(storage) as store:
        if format == "json":
            print_json(trial_document(store, name, trial))
        else:
            out.print(trial_report(store, name, trial))


def front(
    name: StudyName,
    format: Annotated[Literal["table", "json", "csv"], typer.Option(help="How to print it.")] = "table",
    out_file: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Print the Pareto front of a study."""
    if format == "table":
        _print_front(name, storage, out_file)
        return
    from ..studies.reports.report import front_text

    with opened(storage) as store:
        text = front_text(store, name, format)
    if out_file is None:
        sys.stdout.write(text)
    else:
        write_text(out_file, text)


def audit(
    name: StudyName,
    format: Format = "table",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the figure to this file.")] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show how FLOPs, BOPs and sizes rank the trials of a study against their measured latency."""
    from ..studies.analysis.audit import audit as audit_trials
    from ..studies.reports.audit_report import audit_document, audit_figure, audit_report

    with opened(storage) as store:
        target, trials = store.get_study(name).spec.target, store.trials(name)
    audits = audit_trials(trials)
    if format == "json":
        print_json(audit_document(name, target, audits))
    else:
        out.print(audit_report(name, target, audits))
    if plot is not None:
        write_text(plot, audit_figure(trials, audits).to_html())
        err.print(f"figure written to {plot}", highlight=False)


def _print_front(name: str, storage: str, file: Path | None = None) -> None:
    from ..studies.reports.report import front_table

    with opened(storage) as store:
        table = front_table(store, name)
    if file is None:
        out.print(table)
        return
    plain = io.StringIO()
    Console(width=UNCUT, file=plain).print(table)
    write_text(file, "".join(f"{line.rstrip()}\n" for line in plain.getvalue().splitlines()))
