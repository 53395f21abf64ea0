"""The commands. torch, optuna and ray are imported by the commands that need them, so that `--help` is there at once."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console

from .errors import SlimfrontError, UserError

app = typer.Typer(
    name="slimfront",
    help="Search compression policies of a trained model; every trial really compressed, every number really measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

Storage = Annotated[
    str,
    typer.Option(envvar="SLIMFRONT_STORAGE", help="Database URL: sqlite:///FILE or postgresql://USER@HOST/NAME."),
]
Artifacts = Annotated[
    Path, typer.Option(envvar="SLIMFRONT_ARTIFACTS", help="Folder that artifacts of trials are kept in.")
]
StudyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of a study in the database.")]
DEFAULT_STORAGE = "sqlite:///slimfront.db"
DEFAULT_ARTIFACTS = Path("slimfront-artifacts")


@app.command()
def search(
    study: Annotated[str, typer.Argument(metavar="STUDY.yaml", help="A study file, or the name of a shipped study.")],
    trials: Annotated[
        int | None, typer.Option(help="Trials the study shall have in all, in place of the file's.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Ray workers; 0 runs without Ray.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    seed: Annotated[
        int | None, typer.Option(help="Seed of sampler and recovery; a study that has begun keeps its own.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which no further trial starts.")] = None,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
) -> None:
    """Run a study, or continue it where it stopped.

    Ctrl-C stops it; nothing finished is lost and the same command goes on.
    """
    from .studies.spec import load_study

    spec = load_study(study).replaced(trials=trials, workers=workers, seed=seed, timeout_s=timeout)

    err.print(f"[bold]{spec.study}[/bold]: loading PyTorch, the runtimes and workload {spec.workload}", highlight=False)
    from .search.run import run_search  # takes seconds: it imports torch, optuna and ray

    try:
        run_search(spec, storage, artifacts, err)
    except KeyboardInterrupt:
        _fail("interrupted; everything finished is stored, the same command goes on", 130)
    _print_front(spec.study, storage)
    out.print(
        f"\n[bold]Next[/bold]\n"
        f"  slimfront show {spec.study} TRIAL       one trial: its policy per layer, all it measured\n"
        f"  slimfront export {spec.study} --to DIR  the knee of the front as a bundle\n"
        f"  slimfront dashboard {spec.study}        the study in the browser",
        highlight=False,
    )


@app.command()
def inspect(
    workload: Annotated[
        str,
        typer.Argument(metavar="WORKLOAD", help="A study file, digits, torchvision:NAME, or path.py:function."),
    ],
    target: Annotated[
        str | None, typer.Option(help="Target card that bits are judged by; a study's own unless given.")
    ] = None,
    format: Annotated[Literal["table", "json"], typer.Option(help="How to print it.")] = "table",
) -> None:
    """Tell what a search could do to a workload and what it could not, and why, before it starts."""
    from .studies.inspection import inspect_reference
    from .studies.inspection_report import inspection_tables

    inspection = inspect_reference(workload, target)
    if format == "json":
        import json

        sys.stdout.write(json.dumps(inspection.to_dict(), indent=2) + "\n")
    else:
        out.print(inspection_tables(inspection))


@app.command()
def studies(storage: Storage = DEFAULT_STORAGE) -> None:
    """List the studies in the database."""
    from .studies.report import studies_table

    with _store(storage) as store:
        out.print(studies_table(store))


@app.command()
def status(name: StudyName, storage: Storage = DEFAULT_STORAGE) -> None:
    """Tell how far a study is: trials by state, front, and why trials failed."""
    from .studies.report import status_report

    with _store(storage) as store:
        out.print(status_report(store, name))


@app.command()
def show(
    name: StudyName,
    trial: Annotated[int, typer.Argument(help="Number of the trial.")],
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show one trial: its policy per layer and every measurement."""
    from .studies.report import trial_report

    with _store(storage) as store:
        out.print(trial_report(store, name, trial))


@app.command()
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
    from .studies.report import front_text

    with _store(storage) as store:
        text = front_text(store, name, format)
    if out_file is None:
        sys.stdout.write(text)
    else:
        _write(out_file, text)


@app.command()
def audit(
    name: StudyName,
    format: Annotated[Literal["table", "json"], typer.Option(help="How to print it.")] = "table",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the figure to this file.")] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Tell how FLOPs, BOPs and sizes rank the trials of a study against their measured latency."""
    from .studies.audit import audit as audit_trials
    from .studies.audit_report import audit_document, audit_figure, audit_report

    with _store(storage) as store:
        target, trials = store.get_study(name).spec.target, store.trials(name)
    audits = audit_trials(trials)
    if format == "json":
        sys.stdout.write(json.dumps(audit_document(name, target, audits), indent=2) + "\n")
    else:
        out.print(audit_report(name, target, audits))
    if plot is not None:
        _write(plot, audit_figure(trials, audits).to_html())
        err.print(f"figure written to {plot}", highlight=False)


@app.command()
def export(
    name: StudyName,
    to: Annotated[Path, typer.Option(help="Folder to write the bundle to; it must be new or empty.")],
    trial: Annotated[int | None, typer.Option(help="Number of the trial to export.")] = None,
    pick: Annotated[
        Literal["knee", "fastest", "smallest", "most-accurate"] | None,
        typer.Option(help="Rule that picks from the front."),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Export one point: policy, the artifact that was measured, weights and a card. The knee unless told otherwise."""
    if trial is not None and pick is not None:
        raise UserError("give --trial or --pick, not both")
    from .studies.export import export_bundle

    with _store(storage) as store:
        number = export_bundle(store, name, to, trial=trial, rule=pick or "knee")
    out.print(f"trial {number} exported to {to}; read {to / 'card.md'}", highlight=False)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder that `slimfront export` wrote.")],
    base: Annotated[Path, typer.Option(help="Folder of a workload given as file.py:function.")] = Path(),
) -> None:
    """Hold a bundle against its card: files, size, accuracy on this machine, paired speed-up where the target is.

    The exit code is 1 where something does not hold. A speed-up may well differ on another kind of machine.
    """
    from .search.timer_of_target import timer_of
    from .studies.terminal import add_row, rows_table
    from .studies.verify import verify_bundle

    with err.status(f"verifying {bundle}"):
        checks = list(verify_bundle(bundle, base, timer_of))
    table = rows_table(("claim", "card>", "here>", "allowed>", ""))
    for check in checks:
        verdict = {True: "holds", False: "DIFFERS", None: "not checked"}[check.holds]
        add_row(table, (check.claim, check.recorded, check.found, check.allowed, verdict))
    out.print(table)
    if broken := [check.claim for check in checks if check.holds is False]:
        _fail(f"{bundle} is not what its card says: {', '.join(broken)}", 1)


@app.command()
def profile(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A target card: a shipped one's name, or a file.")],
    show: Annotated[bool, typer.Option("--show", help="Show what is known of the target; measure nothing.")] = False,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.yaml", help="Write the measured card to this file too.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="STUDY", help="Fit a latency table too, for the model and space of this study; minutes."),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Measure this machine as a target runs it: arithmetic per precision, memory, dispatch, well-known models.

    Takes at most a minute, and says what a slow runtime left no time for. The card is kept in the database; studies use it by
    the file that --out writes.
    """
    from .studies.profiles import measure_target, target_report

    if show:
        out.print(target_report(target, storage))
        return
    measured = measure_target(target, storage, err)
    if table is not None:
        from .search.latency_table import add_table  # imports torch, optuna

        measured = add_table(measured, table, storage, err)
    if out_file is not None:
        from .hardware_profiles.target import card_text

        _write(out_file, card_text(measured))
    out.print(target_report(target, storage))


@app.command()
def profiles(storage: Storage = DEFAULT_STORAGE) -> None:
    """List the targets: shipped templates, and what was measured of them."""
    from .studies.profiles import profiles_table

    out.print(profiles_table(storage))


@app.command()
def dashboard(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Study to open; all are served.")] = None,
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on. The dashboard has no authentication.")] = "127.0.0.1",
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Serve optuna-dashboard over the database."""
    from .search.dashboard import serve

    with _store(storage) as store:
        serve(store, name, host, port, err)


def main() -> None:
    """Entry point: an error of the user is one line and exit code 2, another declared one 1, Ctrl-C 130."""
    if not sys.warnoptions:  # `python -W` and PYTHONWARNINGS show them
        warnings.simplefilter("ignore")  # libraries' own deprecations are none of the user's business
    try:
        app(standalone_mode=True)
    except UserError as error:
        _fail(str(error), 2)
    except SlimfrontError as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"slimfront: {' '.join(message.split())}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)


def _store(storage: str):
    from .studies.store import Store

    return Store(storage, create=False)


def _print_front(name: str, storage: str, file: Path | None = None) -> None:
    from .studies.report import front_table

    with _store(storage) as store:
        table = front_table(store, name)
    if file is None:
        out.print(table)
        return
    plain = Console(width=120, record=True, quiet=True)
    plain.print(table)
    _write(file, plain.export_text())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
