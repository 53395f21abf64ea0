"""The figure of a front's policies, in plotly: a pure function of store records, of few bytes as in `figures`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ...spaces.policies.layer_policy import FULL_PRECISION
from ...spaces.policies.policy import Policy
from ...spaces.policies.resolved import as_layer_policies
from ...spaces.policies.sparsity import zeroed_share
from ..analysis.front import Objective
from ..store.records import TrialRecord
from .figures import LAYOUT

MOST_COLUMNS = 40
"""The most trials in the heat map: evenly spread over the front, both ends included."""

MOST_CELLS_WITH_TEXT = 36
"""The most columns, of all panels together, whose cells are wide enough for their numbers."""

BIT_COLOURS = {
    2: "#7f2704", 3: "#d94801", 4: "#fd8d3c",  # below 8 bits in oranges
    5: "#08519c", 6: "#2171b5", 8: "#6baed6", 16: "#c6dbef", FULL_PRECISION: "#eef1f4",
}  # fmt: skip
"""One colour per bit-width, the same in every study; full precision is nearly white."""

_REMOVED_COLOURS = [[0, "#eef1f4"], [0.5, "#9e9ac8"], [1, "#3f007d"]]
_REMOVED_BAR: dict[str, Any] = {
    "orientation": "h", "x": 1, "xanchor": "right", "y": -0.15, "yanchor": "top", "len": 0.25, "thickness": 8,
    "tickformat": ".0%", "tickvals": [0, 0.5, 1], "outlinewidth": 0,
}  # fmt: skip
_BITS_LEGEND = {"title_text": "bits", "orientation": "h", "x": 0, "y": -0.15, "yanchor": "top"}


def policy_heatmap(
    trials: Sequence[TrialRecord],
    objective: Objective,
    layers: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> go.Figure:
    """The decisions of a front's policies per layer and channel group, a column per trial, best first by `objective`.

    One panel each for weight bits, activation bits, weights set to zero (see `zeroed_share`) and channels removed (width
    included); a panel in which nothing is decided is left out.

    Args:
        trials: on the front, each measured on `objective`.
        layers, groups: their names in the model's order; others that a policy names follow by name.
    """
    ordered = sorted(
        trials, key=lambda trial: (objective.sign * trial.measurements[objective.name].value, trial.number)
    )
    shown = _spread(ordered, MOST_COLUMNS)
    panels = _panels([trial.policy for trial in shown], layers, groups)
    figure = make_subplots(1, len(panels), subplot_titles=[panel.title for panel in panels], horizontal_spacing=0.02)
    for index, panel in enumerate(panels, start=1):
        heatmap = _heatmap(panel, [f"#{trial.number}" for trial in shown])
        if len(shown) * len(panels) <= MOST_CELLS_WITH_TEXT:
            heatmap.texttemplate = "%{z:.2~f}"
        figure.add_trace(heatmap, row=1, col=index)
        figure.update_yaxes(_rows_axis(index, panels), row=1, col=index)
    figure.add_traces(_bit_legend(panels))
    figure.update_xaxes(type="category", tickfont_size=10, showgrid=False, zeroline=False)
    count = str(len(trials)) if len(shown) == len(trials) else f"{len(shown)} of {len(trials)}"
    figure.update_annotations(font_size=10)  # the panels' titles
    figure.update_layout(
        LAYOUT,
        showlegend=True,  # also where one entry is all there is
        title_text=f"Policies: {count} front trials, best {objective.name} left",
        legend={**_BITS_LEGEND, "itemclick": False, "itemdoubleclick": False},
        margin={"l": 10, "r": 10, "t": 65, "b": 75},
        coloraxis=_bits_scale(),
        coloraxis2={"cmin": 0, "cmax": 1, "colorscale": _REMOVED_COLOURS, "colorbar": _REMOVED_BAR},
    )
    return figure


@dataclass(frozen=True)
class _Panel:
    title: str
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    scale: Literal["bits", "fraction"]

    @property
    def decides(self) -> bool:
        neutral = FULL_PRECISION if self.scale == "bits" else 0
        return any(value != neutral for row in self.values for value in row)


def _panels(policies: Sequence[Policy], layers: Sequence[str], groups: Sequence[str]) -> list[_Panel]:
    policies = [as_layer_policies(policy) for policy in policies]
    layers = _all_names(layers, (name for policy in policies for name in policy.layers))
    groups = _all_names(groups, (name for policy in policies for name in policy.channels))
    panels = [
        _panel("weight bits", layers, "bits", policies, lambda policy, name: policy.layer(name).weight_bits),
        _panel("activation bits", layers, "bits", policies, lambda policy, name: policy.layer(name).activation_bits),
        _panel("weights zeroed", layers, "fraction", policies, lambda p, name: zeroed_share(p.layer(name).sparsity)),
        _panel("channels removed", groups, "fraction", policies, lambda p, name: round(1 - p.kept_fraction(name), 3)),
    ]
    return [panel for panel in panels if panel.decides] or panels[:1]


def _panel(
    title: str,
    rows: Sequence[str],
    scale: Literal["bits", "fraction"],
    policies: Sequence[Policy],
    value: Callable[[Policy, str], float],
) -> _Panel:
    """A panel of `value` of every policy, by column, for the layer or group of every row."""
    return _Panel(title, rows, [[value(policy, name) for policy in policies] for name in rows], scale)


def _heatmap(panel: _Panel, columns: Sequence[str]) -> go.Heatmap:
    return go.Heatmap(
        x=columns,
        y=panel.rows,
        z=panel.values,
        coloraxis="coloraxis" if panel.scale == "bits" else "coloraxis2",
        xgap=1,
        ygap=1,
        hovertemplate=f"%{{y}}<br>trial %{{x}}<br>{panel.title} %{{z}}<extra></extra>",
    )


def _rows_axis(index: int, panels: Sequence[_Panel]) -> dict[str, Any]:
    """Rows from the top; panels of the same rows share the first one's labels, others have theirs on the right."""
    axis: dict[str, Any] = {"autorange": "reversed", "tickfont": {"size": 10}, "automargin": True, "showgrid": False}
    if index > 1 and panels[index - 1].rows == panels[0].rows:
        return {**axis, "showticklabels": False, "ticks": ""}
    return {**axis, "side": "left" if index == 1 else "right"}


def _bits_scale() -> dict[str, Any]:
    """A colour scale with a step per bit-width, from half-way below it to half-way above."""
    bits = sorted(BIT_COLOURS)
    middles = [(a + b) / 2 for a, b in pairwise(bits)]
    edges = [bits[0] - 0.5, *middles, bits[-1] + 0.5]
    low, span = edges[0], edges[-1] - edges[0]
    steps = [
        [round((edge - low) / span, 4), BIT_COLOURS[width]]
        for width, ends in zip(bits, pairwise(edges), strict=True)
        for edge in ends
    ]
    return {"cmin": low, "cmax": edges[-1], "colorscale": steps, "showscale": False}


def _bit_legend(panels: Sequence[_Panel]) -> list[go.Scatter]:
    """An entry per bit-width in use: a colour bar would squeeze the small ones."""
    used = {value for panel in panels if panel.scale == "bits" for row in panel.values for value in row}
    looks = {"symbol": "square", "size": 12, "line": {"color": "#999999", "width": 0.5}}
    return [
        go.Scatter(x=[None], y=[None], mode="markers", name=str(bits), marker={**looks, "color": BIT_COLOURS[bits]})
        for bits in sorted(BIT_COLOURS)
        if bits in used
    ]


def _all_names(listed: Sequence[str], named: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*listed, *sorted(named)]))


def _spread(trials: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    if len(trials) <= most:
        return list(trials)
    return [trials[round(index * (len(trials) - 1) / (most - 1))] for index in range(most)]
