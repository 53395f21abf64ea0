"""The studies of a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.defaults import DEFAULT_STORAGE
from ..studies.reports.status import StudySummary, study_summaries
from ..studies.store.store import Store
from ..studies.terminal import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Studies(Shown):
    """The studies of a database, oldest first."""

    studies: Sequence[StudySummary]

    def to_dict(self) -> dict[str, Any]:
        """The document that `slimfront studies --format json` prints."""
        return {"studies": [study.to_dict() for study in self.studies]}

    def __rich__(self) -> RenderableType:
        from ..studies.reports.report import studies_table

        return studies_table(self.studies)


def studies(storage: str = DEFAULT_STORAGE) -> Studies:
    """List the studies of a database.

    Args:
        storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`.

    Raises:
        UserError: no such database.
    """
    with Store(storage, create=False) as store:
        return Studies(study_summaries(store))
