"""Bundles: what `export` wrote, and what `verify` found of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..studies.reports.json_documents import checks_document, export_document
from ..studies.terminal import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..studies.bundles.judge import Judge
    from ..studies.bundles.verify import Check
    from ..studies.files.remade import Remade
    from ..workloads.workload import Workload


@dataclass(frozen=True)
class ExportedBundle:
    """A trial of a study, written to a folder.

    Attributes:
        remade: what had to be made again from the trial's policy, since its files were not kept; None where nothing had.
    """

    study: str
    trial: int
    folder: Path
    remade: Remade | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document that `slimfront export --format json` prints."""
        return export_document(self.study, self.trial, self.folder, self.remade)


@dataclass(frozen=True)
class Verification(Shown):
    """What was found of a bundle, claim by claim of its card."""

    folder: Path
    checks: Sequence[Check]

    @property
    def holds(self) -> bool:
        """Whether no claim was found wrong; some may not have been checked."""
        return not self.broken

    @property
    def broken(self) -> list[str]:
        """The claims that do not hold."""
        return [check.claim for check in self.checks if check.holds is False]

    def to_dict(self) -> dict[str, Any]:
        """The document that `slimfront verify --format json` prints."""
        return checks_document(self.folder, self.checks)

    def __rich__(self) -> RenderableType:
        from ..studies.reports.verify_report import checks_report

        return checks_report(self.checks)


def verify(bundle: str | Path, workload: str | Workload | None = None, *, base: str | Path = ".") -> Verification:
    """Check a bundle against its card: files, size, accuracy on this machine, paired speed-up where the target is.

    Nothing that the bundle names is run. `Study.verify` takes the workload of the study that made the bundle.

    Args:
        bundle: folder that `export` wrote.
        workload: what scores it: a study file, a workload's name or the workload itself. Without one the accuracy is not
            checked.
        base: folder of a workload given as "file.py:function".

    Raises:
        UserError: no bundle, or a workload that has other inputs.
    """
    from ..studies.bundles.judge import judge_of_workload

    return verified(Path(bundle), None if workload is None else judge_of_workload(workload, Path(base)))


def verified(folder: Path, judge: Judge | None) -> Verification:
    """What is found of a bundle whose accuracy `judge` scores."""
    from ..search.cluster.timers import timer_of
    from ..studies.bundles.verify import verify_bundle

    return Verification(folder, list(verify_bundle(folder, timer_of, judge)))
