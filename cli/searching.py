"""`search`, `inspect` and `dashboard`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from ..core.defaults import DEFAULT_STORAGE
from .options import (
    Artifacts,
    Format,
    Storage,
    complete_studies,
    complete_targets,
    err,
    fail,
    out,
    print_result,
)
from .usage import number, port_number, whole_number, workers_count

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell."""


def search(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY.yaml",
            help="A study file, or the name of a shipped study.",
            autocompletion=complete_studies,
        ),
    ],
    trials: Annotated[
        int | None,
        typer.Option(parser=whole_number, metavar="N", help="Trials in all; overrides the file's number."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N", help="Ray workers, or auto: as many as there is room for; 0 runs without Ray."),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Seed of sampler and recovery; a study that has begun keeps its own.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="SECONDS",
            help="Time limit for the command in seconds, approximate.",
        ),
    ] = None,
    artifacts: Artifacts = None,
    format: Format = "table",
) -> None:
    """Run a study, or continue it where it stopped.

    Ctrl-C stops it; finished trials are stored, and the same command continues.
    """
    started = time.monotonic()
    from .. import api
    from ..studies.study_file.load import load_study

    count = workers_count(workers) if workers is not None else None
    spec = load_study(study).replaced(trials=trials, workers=count, seed=seed, timeout_s=timeout)
    try:
        found = api.search(spec, storage=storage, artifacts=artifacts, progress=err, started=started)
    except KeyboardInterrupt:
        fail("interrupted; finished trials are stored; run the same command to continue", INTERRUPTED)
    print_result(found.show_front(), format)
    if format == "json":
        return
    out.print(
        f"\n[bold]Next[/bold]\n"
        f"  slimfront show {spec.study} TRIAL       one trial: its policy per layer, all it measured\n"
        f"  slimfront export {spec.study} --to DIR  the knee of the front as a bundle\n"
        f"  slimfront dashboard {spec.study}        the study in the browser",
        highlight=False,
    )


def inspect(
    workload: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD",
            help="A study file, digits, torchvision:NAME, or path.py:function.",
            autocompletion=complete_studies,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="Target card that bits are judged by; a study's own unless given.", autocompletion=complete_targets
        ),
    ] = None,
    format: Format = "table",
) -> None:
    """Show, before a search, what it could compress in a workload and what it could not, and why."""
    from .. import api

    print_result(api.inspect(workload, target, progress=err), format)


def dashboard(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Study to open; all are served.")] = None,
    port: Annotated[int, typer.Option(parser=port_number, metavar="PORT", help="Port to listen on.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on. The dashboard has no authentication.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another name by which browsers reach this machine; may be given several times."
        ),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Serve optuna-dashboard over the database, read-only."""
    from .. import api

    api.dashboard(storage, name, host=host, port=port, allow_hosts=allow_host or (), progress=err)
