"""The commands. torch, optuna and ray are imported by the commands that need them, so that `--help` is there at once."""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from .core.console import UNCUT, open_console, write_in_any_encoding
from .core.errors import SlimfrontError, UserError
from .usage import USAGE_ERROR, number, port_number, usage_problem, whole_number

app = typer.Typer(
    name="slimfront",
    help="Search compression policies of a trained model; every trial really compressed, every number really measured.",
    add_completion=False,  # `--show-completion` below, which takes the shell's name instead of guessing it
    pretty_exceptions_enable=False,
)
out = open_console()
err = open_console(stderr=True)

COMPLETE = "_SLIMFRONT_COMPLETE"
"""Variable by which a shell asks for completions."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell."""

VERSIONED = ("torch", "torchvision", "openvino", "onnxruntime", "optuna", "ray", "sqlalchemy")
"""Packages that `--version` names as well."""


def _complete_studies() -> list[str]:
    from .studies.study_file.spec import shipped_studies

    return shipped_studies()


def _complete_targets() -> list[str]:
    from .hardware_profiles.cards.target import shipped_targets

    return shipped_targets()


def _complete_names(context: typer.Context) -> list[str]:
    """Studies of the database; none where it cannot be read, as a shell that waits for completions shows no errors."""
    try:
        with _store(context.params.get("storage") or os.environ.get("SLIMFRONT_STORAGE", DEFAULT_STORAGE)) as store:
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
    str, typer.Argument(metavar="NAME", help="Name of a study in the database.", autocompletion=_complete_names)
]
Format = Annotated[Literal["table", "json"], typer.Option(help="How to print it; docs/json.md describes the JSON.")]
DEFAULT_STORAGE = "sqlite:///slimfront.db"
DEFAULT_ARTIFACTS = Path("slimfront-artifacts")


def _print_version(wanted: bool) -> None:
    if wanted:
        found = ", ".join(f"{name} {_version(name)}" for name in VERSIONED)
        out.print(f"slimfront {_version('slimfront')} (Python {sys.version.split()[0]}, {found})", highlight=False)
        raise typer.Exit


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _print_completion(shell: str | None) -> None:
    if shell:
        from typer.completion import get_completion_script  # pyright: ignore[reportPrivateImportUsage]

        out.print(
            get_completion_script(prog_name="slimfront", complete_var=COMPLETE, shell=shell),
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    show_completion: Annotated[
        Literal["bash", "zsh", "fish", "powershell"] | None,
        typer.Option(
            callback=_print_completion,
            is_eager=True,
            help='Print the completion of a shell; in ~/.bashrc: eval "$(slimfront --show-completion bash)".',
        ),
    ] = None,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def search(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY.yaml",
            help="A study file, or the name of a shipped study.",
            autocompletion=_complete_studies,
        ),
    ],
    trials: Annotated[
        int | None,
        typer.Option(
            parser=whole_number, metavar="N", help="Trials the study shall have in all, in place of the file's."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(parser=whole_number, metavar="N", help="Ray workers; 0 runs without Ray.")
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
            help="Seconds the command may take in all, as far as that can be foreseen.",
        ),
    ] = None,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    format: Format = "table",
) -> None:
    """Run a study, or continue it where it stopped.

    Ctrl-C stops it; nothing finished is lost and the same command goes on.
    """
    started = time.monotonic()
    from .studies.study_file.spec import load_study

    spec = load_study(study).replaced(trials=trials, workers=workers, seed=seed, timeout_s=timeout)

    with err.status(f"{spec.study}: loading PyTorch and the runtimes"):
        from .search.run import run_search  # takes seconds: it imports torch, optuna and ray

    try:
        run_search(spec, storage, artifacts, err, started)
    except KeyboardInterrupt:
        _fail("interrupted; everything finished is stored, the same command goes on", INTERRUPTED)
    if format == "json":
        front(spec.study, "json", None, storage)
        return
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
        typer.Argument(
            metavar="WORKLOAD",
            help="A study file, digits, torchvision:NAME, or path.py:function.",
            autocompletion=_complete_studies,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="Target card that bits are judged by; a study's own unless given.", autocompletion=_complete_targets
        ),
    ] = None,
    format: Format = "table",
) -> None:
    """Tell what a search could do to a workload and what it could not, and why, before it starts."""
    from .studies.inspection.inspect import inspect_reference
    from .studies.inspection.report import inspection_tables

    inspection = inspect_reference(workload, target)
    if format == "json":
        _print_json(inspection.to_dict())
    else:
        out.print(inspection_tables(inspection))


@app.command()
def studies(format: Format = "table", storage: Storage = DEFAULT_STORAGE) -> None:
    """List the studies in the database."""
    from .studies.reports.json_documents import studies_document
    from .studies.reports.report import studies_table

    with _store(storage) as store:
        if format == "json":
            _print_json(studies_document(store))
        else:
            out.print(studies_table(store))


@app.command()
def status(name: StudyName, format: Format = "table", storage: Storage = DEFAULT_STORAGE) -> None:
    """Tell how far a study is: trials by state, front, and why trials failed."""
    from .studies.reports.report import status_report
    from .studies.reports.status import study_status

    with _store(storage) as store:
        if format == "json":
            _print_json(study_status(store, name).to_dict())
        else:
            out.print(status_report(store, name))


@app.command()
def show(
    name: StudyName,
    trial: Annotated[int, typer.Argument(parser=whole_number, metavar="TRIAL", help="Number of the trial.")],
    format: Format = "table",
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show one trial: its policy per layer and every measurement."""
    from .studies.reports.json_documents import trial_document
    from .studies.reports.report import trial_report

    with _store(storage) as store:
        if format == "json":
            _print_json(trial_document(store, name, trial))
        else:
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
    from .studies.reports.report import front_text

    with _store(storage) as store:
        text = front_text(store, name, format)
    if out_file is None:
        sys.stdout.write(text)
    else:
        _write(out_file, text)


@app.command()
def audit(
    name: StudyName,
    format: Format = "table",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the figure to this file.")] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Tell how FLOPs, BOPs and sizes rank the trials of a study against their measured latency."""
    from .studies.analysis.audit import audit as audit_trials
    from .studies.reports.audit_report import audit_document, audit_figure, audit_report

    with _store(storage) as store:
        target, trials = store.get_study(name).spec.target, store.trials(name)
    audits = audit_trials(trials)
    if format == "json":
        _print_json(audit_document(name, target, audits))
    else:
        out.print(audit_report(name, target, audits))
    if plot is not None:
        _write(plot, audit_figure(trials, audits).to_html())
        err.print(f"figure written to {plot}", highlight=False)


@app.command()
def export(
    name: StudyName,
    to: Annotated[Path, typer.Option(help="Folder to write the bundle to; it must be new or empty.")],
    trial: Annotated[
        int | None, typer.Option(parser=whole_number, metavar="N", help="Number of the trial to export.")
    ] = None,
    pick: Annotated[
        Literal["knee", "fastest", "smallest", "most-accurate"] | None,
        typer.Option(help="Rule that picks from the front."),
    ] = None,
    format: Format = "table",
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Export one point: policy, the artifact that was measured, weights and a card. The knee unless told otherwise."""
    if trial is not None and pick is not None:
        raise UserError("give --trial or --pick, not both")
    from .studies.bundles.export import export_bundle

    with _store(storage) as store:
        number = export_bundle(store, name, to, trial=trial, rule=pick or "knee")
    if format == "json":
        from .studies.reports.json_documents import export_document

        _print_json(export_document(name, number, to))
        return
    out.print(f"trial {number} exported to {to}; read {to / 'card.md'}", highlight=False)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder that `slimfront export` wrote.")],
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="WORKLOAD",
            help="What scores it: a study file, digits, torchvision:NAME, or path.py:function. "
            "Without it or --study the accuracy is not checked.",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The study in your database that made it, whose workload scores it."),
    ] = None,
    base: Annotated[Path, typer.Option(help="Folder of a workload given as file.py:function.")] = Path(),
    storage: Storage = DEFAULT_STORAGE,
    format: Format = "table",
) -> None:
    """Hold a bundle against its card: files, size, accuracy on this machine, paired speed-up where the target is.

    Nothing that the bundle names is run. The exit code is 1 where something does not hold. A speed-up may well differ on
    another kind of machine.
    """
    if workload is not None and study is not None:
        raise UserError("give --workload or --study, not both")
    from .search.cluster.timers import timer_of
    from .studies.bundles.bundle import open_bundle
    from .studies.bundles.judge import judge_of_study, judge_of_workload
    from .studies.bundles.verify import verify_bundle
    from .studies.reports.verify_report import checks_report

    with err.status(f"verifying {bundle}"):
        judge, opened = None, open_bundle(bundle)
        if workload is not None:
            judge = judge_of_workload(workload, base)
        elif study is not None:
            with _store(storage) as store:
                judge = judge_of_study(store, study, opened)
        checks = list(verify_bundle(bundle, timer_of, judge))
    if format == "json":
        from .studies.reports.json_documents import checks_document

        _print_json(checks_document(bundle, checks))
    else:
        out.print(checks_report(checks))
    if broken := [check.claim for check in checks if check.holds is False]:
        _fail(f"{bundle} is not what its card says: {', '.join(broken)}", 1)


@app.command()
def profile(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A target card: a shipped one's name, or a file.",
            autocompletion=_complete_targets,
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

    Takes at most a minute, and says what a slow runtime left no time for. The card is kept in the database; studies use it by
    the file that --out writes.
    """
    from .studies.reports.profiles import measure_target

    if show:
        _print_target(target, storage, format)
        return
    measured = measure_target(target, storage, err)
    if table is not None:
        from .search.measured_table import add_table  # imports torch, optuna

        measured = add_table(measured, table, storage, err)
    if out_file is not None:
        from .hardware_profiles.cards.target import card_text

        _write(out_file, card_text(measured))
    _print_target(target, storage, format)


@app.command()
def profiles(format: Format = "table", storage: Storage = DEFAULT_STORAGE) -> None:
    """List the targets: shipped templates, and what was measured of them."""
    from .studies.reports.profiles import profiles_document, profiles_table

    if format == "json":
        _print_json(profiles_document(storage))
    else:
        out.print(profiles_table(storage))


@app.command()
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
    from .search.dashboard.serve import serve

    with _store(storage) as store:
        serve(store, name, host, port, err, allow_host or ())


def main() -> None:
    """Entry point: an error of the user is one line and exit code 2, another declared one 1, Ctrl-C 130."""
    if not sys.warnoptions:  # `python -W` and PYTHONWARNINGS show them
        warnings.simplefilter("ignore")  # libraries' own deprecations are none of the user's business
    write_in_any_encoding()
    if COMPLETE in os.environ:
        from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

        completion_init()
    try:
        code = app(prog_name="slimfront", standalone_mode=False)  # None unless a command asked to exit
    except USAGE_ERROR as error:
        _fail(usage_problem(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED  # what newer releases of typer return
    except UserError as error:
        _fail(str(error), 2)
    except SlimfrontError as error:
        _fail(str(error), 1)
    if code == INTERRUPTED:
        _fail("interrupted", INTERRUPTED)
    if code:
        sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"slimfront: {' '.join(message.split())}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)


def _store(storage: str):
    from .studies.store.store import Store

    return Store(storage, create=False)


def _print_front(name: str, storage: str, file: Path | None = None) -> None:
    from .studies.reports.report import front_table

    with _store(storage) as store:
        table = front_table(store, name)
    if file is None:
        out.print(table)
        return
    plain = io.StringIO()
    Console(width=UNCUT, file=plain).print(table)
    _write(file, "".join(f"{line.rstrip()}\n" for line in plain.getvalue().splitlines()))


def _print_target(target: str, storage: str, format: str) -> None:
    from .studies.reports.profiles import target_document, target_report

    if format == "json":
        _print_json(target_document(target, storage))
    else:
        out.print(target_report(target, storage))


def _print_json(document: Mapping[str, Any]) -> None:
    from .studies.reports.json_documents import json_text

    sys.stdout.write(json_text(document))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
