"""The figure of the damage of single choices, in plotly: a pure function of store records, of few bytes as in `figures`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from ..store.records import SensitivityRecord
from .figures import LAYOUT

FAINTEST = 1e-6
"""The damage below which all cells have the same colour."""

_COLOURS = [[0, "#f7f7f7"], [0.5, "#fd8d3c"], [1, "#7f2704"]]


def sensitivity_heatmap(records: Sequence[SensitivityRecord]) -> go.Figure:
    """Log damage of the one choice measured of each knob: a row per layer or channel group, a column per kind of knob.

    Args:
        records: at least one, in the order of the space's knobs, whose names are "number.subject.kind".
    """
    subjects, kinds, rows = _table(records)
    heatmap = go.Heatmap(
        x=[kind.replace("_", " ") for kind in kinds],
        y=subjects,
        z=[[_log(record) for record in row] for row in rows],
        text=[[_text(record) for record in row] for row in rows],
        texttemplate="%{text}",
        hovertemplate="%{y}<br>%{x} at %{text}<extra></extra>",
        colorscale=_COLOURS,
        colorbar={"title": {"text": "log10 damage"}, "thickness": 8, "outlinewidth": 0},
        xgap=1,
        ygap=1,
    )
    figure = go.Figure(heatmap)
    figure.update_yaxes(autorange="reversed", automargin=True, tickfont_size=10, showgrid=False)
    figure.update_xaxes(showgrid=False)
    title = f"Sensitivity: damage of one choice alone, {records[0].kl.n} validation samples"
    return figure.update_layout(LAYOUT, title_text=title, margin={"l": 10, "r": 10, "t": 65, "b": 40})


def _table(
    records: Sequence[SensitivityRecord],
) -> tuple[list[str], list[str], list[list[SensitivityRecord | None]]]:
    """Subjects, kinds, and the record of each subject and kind, None where there is no such knob."""
    cells = {_place(record): record for record in records}
    subjects = list(dict.fromkeys(subject for subject, _ in cells))
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    return subjects, kinds, [[cells.get((subject, kind)) for kind in kinds] for subject in subjects]


def _text(record: SensitivityRecord | None) -> str:
    return "" if record is None else f"{record.choice}: {record.kl.value:.2g}"


def _place(record: SensitivityRecord) -> tuple[str, str]:
    """Subject and kind of a knob."""
    subject, kind = record.knob.partition(".")[2].rsplit(".", 1)
    return subject, kind


def _log(record: SensitivityRecord | None) -> float | None:
    return None if record is None else round(math.log10(max(record.kl.value, FAINTEST)), 2)
