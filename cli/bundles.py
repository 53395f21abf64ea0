"""`export` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..core.defaults import DEFAULT_STORAGE
from ..core.errors import UserError
from .options import Artifacts, Format, Storage, StudyName, err, fail, out, print_json, print_result
from .usage import whole_number


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
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="What the picked point has to meet, such as 'accuracy_drop <= 0.01'."),
    ] = None,
    format: Format = "table",
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Export one point: policy, the artifact that was measured, weights and a card. The knee by default.

    Files that the study did not keep are made again from the trial's policy.
    """
    if trial is not None and (pick is not None or where):
        raise UserError("give --trial, or --pick and --where, not both")
    from ..api import Study

    with Study.open(storage, name, artifacts) as study, err.status(f"exporting to {to}"):
        exported = study.export(to, trial, pick, where or ())
    if format == "json":
        print_json(exported.to_dict())
    else:
        out.print(f"trial {exported.trial} exported to {to}; read {to / 'card.md'}", highlight=False)
    if exported.remade is not None:
        err.print(exported.remade.words, style="yellow", highlight=False)


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
    """Check a bundle against its card: files, size, accuracy on this machine, paired speed-up where the target is.

    Nothing that the bundle names is run. The exit code is 1 where something does not hold. A speed-up may well differ on
    another kind of machine.
    """
    if workload is not None and study is not None:
        raise UserError("give --workload or --study, not both")
    from .. import api

    with err.status(f"verifying {bundle}"):
        if study is None:
            found = api.verify(bundle, workload, base=base)
        else:
            with api.Study.open(storage, study) as made_by:
                found = made_by.verify(bundle)
    print_result(found, format)
    if found.broken:
        fail(f"{bundle} is not what its card says: {', '.join(found.broken)}", 1)
