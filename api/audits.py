"""How counts rank the trials of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..studies.analysis.audit import ProxyAudit
from ..studies.store.records import TrialRecord
from ..studies.terminal import Shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType


@dataclass(frozen=True, repr=False)
class Audit(Shown):
    """How FLOPs, BOPs and sizes rank the trials of a study against their measured latency.

    Attributes:
        study, target: whose trials, and where they were timed.
        proxies: one entry per count: rank correlations, and the point that it misjudges most.
        trials: all of the study.
    """

    study: str
    target: str
    proxies: Sequence[ProxyAudit]
    trials: Sequence[TrialRecord]

    def to_dict(self) -> dict[str, Any]:
        """The document that `slimfront audit --format json` prints."""
        from ..studies.reports.audit_report import audit_document

        return audit_document(self.study, self.target, self.proxies)

    def figure(self) -> Figure:
        """Latency over each count, a point per timed trial, as a figure of plotly's."""
        from ..studies.reports.audit_report import audit_figure

        return audit_figure(self.trials, self.proxies)

    def __repr__(self) -> str:
        return f"Audit({self.study!r}, {self.target!r}, {len(self.proxies)} proxies, {len(self.trials)} trials)"

    def __rich__(self) -> RenderableType:
        from ..studies.reports.audit_report import audit_report

        return audit_report(self.study, self.target, self.proxies)
