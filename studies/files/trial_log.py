"""The log of a trial that failed: what it printed, and the traceback of what it raised or where it died."""

from __future__ import annotations

from ...core.texts import plain_text
from ..store.store import Store
from .study_files import StudyFiles

KIND = "log"
"""Kind of the file of a failed trial that holds its log."""

LAST_LINES = 20
"""The most lines that are shown of a log, its last."""

MOST_BYTES = 2**16
"""The most bytes that are read of a log, its last: a trial may print without end."""


def last_lines(store: Store, study: str, trial: int) -> list[str]:
    """The last lines of a trial's log, as any terminal shows them; none where it did not fail or the file is gone."""
    if (path := StudyFiles(store, study).found(trial, KIND)) is None:
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MOST_BYTES))
        text = file.read().decode(errors="replace")
    return [plain_text(line) for line in text.splitlines()[-LAST_LINES:]]
