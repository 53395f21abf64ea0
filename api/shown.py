"""Results that are read from a database when they are asked for, and where progress is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType

from ..core.console import open_console
from ..studies.terminal import Shown


class Report(Shown):
    """What was found, as its command prints it: a table, and a document by `to_dict`."""

    def __init__(self, table: RenderableType, document: Mapping[str, Any]) -> None:
        self._table, self._document = table, dict(document)

    def to_dict(self) -> dict[str, Any]:
        """The document that the command prints with `--format json`, of plain JSON values."""
        return self._document

    def __rich__(self) -> RenderableType:
        return self._table


def progress_console(progress: bool | Console) -> Console:
    """Where progress is shown: a console that is given, stderr, or nowhere."""
    if isinstance(progress, Console):
        return progress
    return open_console(stderr=True) if progress else Console(quiet=True)
