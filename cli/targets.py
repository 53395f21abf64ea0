"""`profile` and `profiles`: targets, and what was measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.defaults import DEFAULT_STORAGE
from .options import Format, Storage, complete_targets, err, print_result


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
    from .. import api

    found = api.profile(target, measure=not show, table=table, storage=storage, progress=err)
    if out_file is not None:
        found.save(out_file)
    print_result(found, format)


def profiles(format: Format = "table", storage: Storage = DEFAULT_STORAGE) -> None:
    """List the targets: shipped templates, and what was measured of them."""
    from .. import api

    print_result(api.profiles(storage), format)
