"""A proxy audit as a table, as a JSON document and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Group, RenderableType
from rich.text import Text

from ...core.metrics import METRICS
from ..analysis.audit import LATENCY, ProxyAudit
from ..store.records import TrialRecord
from ..terminal import rows_table
from .figures import LAYOUT

GREY, BLUE, RED = "#c4c4c4", "#8fb8de", "#d1495b"


def audit_report(study: str, target: str, audits: Sequence[ProxyAudit]) -> RenderableType:
    """How proxies rank the study's trials compared with measured latency, and which points they put on their front wrongly."""
    header = ("proxy", "trials>", "Spearman>", "95 % interval>", "Kendall>")
    title = f"{study}: how proxies rank trials against latency measured on {target}"
    lines = [Text(_sentence(found)) for found in audits if found.misled]
    return Group(Text(title, style="bold"), "", rows_table(header, map(_row, audits)), "", *lines)


def audit_document(study: str, target: str, audits: Sequence[ProxyAudit]) -> dict[str, Any]:
    """The audit as plain JSON values: {"study", "target", "proxies": [fields of `ProxyAudit`]}; NaN becomes null."""
    proxies = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(found).items()}
        for found in audits
    ]
    return {"study": study, "target": target, "proxies": proxies}


def audit_figure(trials: Sequence[TrialRecord], audits: Sequence[ProxyAudit]) -> go.Figure:
    """Latency over each proxy, a point per timed trial; an arrow leads from the misled point to the faster one.

    Args:
        trials: all of the study.
        audits: at least one, made of them.
    """
    titles = [f"{found.proxy}<br>Spearman {_number(found.spearman)}" for found in audits]
    figure = make_subplots(1, len(audits), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=titles)
    timed = {trial.number: trial for trial in trials if LATENCY in trial.measurements}
    for column, found in enumerate(audits, start=1):
        place: dict[str, Any] = {"row": 1, "col": column}
        for states, color in ((("infeasible", "pruned"), GREY), (("complete",), BLUE)):
            chosen = [t for t in timed.values() if t.state in states and found.proxy in t.measurements]
            figure.add_trace(_scatter(chosen, found.proxy, " or ".join(states), color, column == 1), **place)
        if found.misled:
            _add_arrow(figure, timed, found, place)
        unit = METRICS[found.proxy].unit
        axis = {"type": "log", "dtick": 1, "tickformat": "~s", "gridcolor": "#e8e8e8"}
        figure.update_xaxes(title_text=f"{found.proxy} [{unit}]", **axis, **place)
    figure.update_yaxes(gridcolor="#e8e8e8")
    figure.update_yaxes(title_text=f"{LATENCY} [ms], measured", row=1, col=1)
    figure.update_layout(LAYOUT, margin={"l": 65, "r": 15, "t": 90, "b": 60}, title_text="Do counts rank speed?")
    return figure


def _row(found: ProxyAudit) -> tuple[str, ...]:
    if math.isnan(found.spearman):
        return found.proxy, str(found.n), "", "the same for all", ""
    interval = f"{_number(found.low)} to {_number(found.high)}"
    return found.proxy, str(found.n), _number(found.spearman), interval, _number(found.kendall)


def _sentence(found: ProxyAudit) -> str:
    misled = found.misled
    assert misled is not None  # asked for only then
    more = f"with {misled.proxy_ratio:.2f}x its {found.proxy}" if misled.proxy_ratio > 1 else f"with its {found.proxy}"
    return (
        f"By {found.proxy}, trial {misled.trial} is on the front; trial {misled.faster}, {more} and no less accurate, "
        f"is measured {misled.latency_ratio:.2f}x as fast."
    )


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}"


def _scatter(trials: Sequence[TrialRecord], proxy: str, name: str, color: str, legend: bool) -> go.Scatter:
    return go.Scatter(
        x=[trial.measurements[proxy].value for trial in trials],
        y=[trial.measurements[LATENCY].value for trial in trials],
        text=[str(trial.number) for trial in trials],
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        marker={"color": color, "size": 7},
        hovertemplate=f"{name} %{{text}}<br>{proxy} %{{x}}<br>{LATENCY} %{{y}}<extra></extra>",
    )


def _add_arrow(
    figure: go.Figure, timed: Mapping[int, TrialRecord], found: ProxyAudit, place: Mapping[str, Any]
) -> None:
    assert found.misled is not None  # asked for only then
    ends = [timed[number].measurements for number in (found.misled.trial, found.misled.faster)]
    (x, y), (to_x, to_y) = ((end[found.proxy].value, end[LATENCY].value) for end in ends)
    x, to_x = math.log10(x), math.log10(to_x)  # as annotations of logarithmic axes want it
    axis = "" if place["col"] == 1 else str(place["col"])
    figure.add_annotation(
        x=to_x, y=to_y, ax=x, ay=y, xref=f"x{axis}", yref=f"y{axis}", axref=f"x{axis}", ayref=f"y{axis}",
        arrowhead=2, arrowcolor=RED, arrowwidth=1.5, text="",
    )  # fmt: skip
