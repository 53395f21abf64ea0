"""What a search could do to a workload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from .models import adopted
from .shown import progress_console

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.console import Doing
    from ..studies.inspection.report import Inspection
    from ..workloads.workload import Workload


def inspect(workload: str | Workload, target: str | None = None, *, progress: bool | Console = False) -> Inspection:
    """Say what a search could do to a workload and what it could not, and why, before it starts.

    Args:
        workload: a study file, the name of a study or workload, or the workload itself.
        target: card that bits are judged by; a study's own by default.
        progress: whether to show on stderr what it is at, or the console to show it on.

    Raises:
        UserError: neither a study nor a workload, or the target cannot be had.
    """
    with progress_console(progress).status(Text("loading PyTorch and the runtimes")) as status:
        return _inspected(workload, target, lambda what: status.update(Text(what)))


def _inspected(workload: str | Workload, target: str | None, doing: Doing) -> Inspection:
    from ..hardware_profiles.cards.target import load_target
    from ..studies.inspection.inspect import inspect_reference, inspect_workload
    from ..workloads.contract import held

    if isinstance(workload, str):
        return inspect_reference(workload, target, doing)
    card = load_target(target, Path.cwd()) if target else None
    return inspect_workload(held(adopted(workload)), card, doing=doing)
