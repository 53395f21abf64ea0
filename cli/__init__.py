"""The commands, a module for each group of them: thin over `slimfront.api`.

torch, optuna and ray are imported by the commands that need them, so that `--help` is there at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Literal

import typer

from ..core.console import write_in_any_encoding
from ..core.errors import SlimfrontError, UserError
from ..core.machine.garbage import collect_seldom
from .bundles import export, verify
from .options import fail, out
from .reading import audit, front, show, status, studies
from .searching import INTERRUPTED, dashboard, inspect, search
from .targets import profile, profiles
from .upkeep import delete, gc, rename
from .usage import USAGE_ERROR, usage_problem

app = typer.Typer(
    name="slimfront",
    help="Search compression policies of a trained model; every trial really compressed, and timed unless its target predicts latency.",
    add_completion=False,  # `--show-completion` below, which takes the shell's name instead of guessing it
    pretty_exceptions_enable=False,
)

COMPLETE = "_SLIMFRONT_COMPLETE"
"""Variable by which a shell asks for completions."""

VERSIONED = ("torch", "torchvision", "openvino", "onnxruntime", "optuna", "ray", "sqlalchemy")
"""Packages that `--version` names as well."""


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


for command in (
    search, inspect, studies, status, show, front, audit, export, verify, profile, profiles, dashboard,
    gc, delete, rename,
):  # fmt: skip
    app.command()(command)


def main() -> None:
    """Entry point: an error of the user is one line and exit code 2, another declared one 1, Ctrl-C 130."""
    if not sys.warnoptions:  # `python -W` and PYTHONWARNINGS show them
        warnings.simplefilter("ignore")  # libraries' own deprecations are none of the user's business
    write_in_any_encoding()
    collect_seldom()
    if COMPLETE in os.environ:
        from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

        completion_init()
    try:
        code = app(prog_name="slimfront", standalone_mode=False)  # None unless a command asked to exit
    except USAGE_ERROR as error:
        fail(usage_problem(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED  # what newer releases of typer return
    except UserError as error:
        fail(str(error), 2)
    except SlimfrontError as error:
        fail(str(error), 1)
    if code == INTERRUPTED:
        fail("interrupted", INTERRUPTED)
    if code:
        sys.exit(code)
