"""`profile` and `profiles`: targets, and what was measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.defaults import DEFAULT_STORAGE
from .options import Format, Storage, complete_targets, err, out, print_json, write_text


def profile(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A target card: a shipped one's name, or a file.",
            autocompletion=complete_targets,
        ),
    ],
    show: Annotated[bool, typer.Option("--show", help="Show what is known of the target; measure nothing.")] = False,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.yaml", help="Write the measured card to this file too.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="STUDY", help="Fit a latency table too, for the model and space of this study; minutes."),
    ] = None,
    format: Format = "table",
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Measure this machine as a target runs it: arithmetic per precision, memory, dispatch, well-known models.

    Takes at most a minute, and lists what it had no time to measure. The card is kept in the database; studies use it by
    the file that --out writes.
    """
    from ..studies.reports.profiles import measure_target

    if show:
        _print_target(target, storage, format)
        return
    measured = measure_target(target, storage, err)
    if table is not None:
        from ..search.measured_table import add_table  # imports torch, optuna

        measured = add_table(measured, table, storage, err)
    if out_file is not None:
        from ..hardware_profiles.cards.target import card_text

        write_text(out_file, card_text(measured))
    _print_target(target, storage, format)


def profiles(format: Format = "table", storage: Storage = DEFAULT_STORAGE) -> None:
    """List the targets: shipped templates, and what was measured of them."""
    from ..studies.reports.profiles import profiles_document, profiles_table

    if format == "json":
        print_json(profiles_document(storage))
    else:
        out.print(profiles_table(storage))


def _print_target(target: str, storage: str, format: str) -> None:
    from ..studies.reports.profiles import target_document, target_report

    if format == "json":
        print_json(target_document(target, storage))
    else:
        out.print(target_report(target, storage))
