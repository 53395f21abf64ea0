"""The figure of a study's front, in plotly: a pure function of store records.

Figures carry few bytes, because the dashboard keeps them in the database: numbers are rounded, points capped, and
no template is embedded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ...core.measurement import Measurement
from ..analysis.front import Objective, Point
from ..analysis.newest_front import objectives_of
from ..analysis.selection import pick
from ..reference_wording import reference_name
from ..store.records import StudyRecord, TrialRecord

MOST_POINTS = 200
"""The most trials drawn of each kind that is not on the front: the newest."""

LAYOUT: dict[str, Any] = {
    "template": go.layout.Template(),
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "font": {"size": 12, "color": "#222222"},
    "title": {"x": 0.01, "xanchor": "left", "y": 0.98, "yanchor": "top", "font": {"size": 15}},
}
"""The layout that all figures share."""

_LOOKS: dict[str, dict[str, Any]] = {
    "infeasible": {"color": "#c4c4c4", "symbol": "x", "size": 7},
    "pruned": {"color": "#c4c4c4", "symbol": "circle-open", "size": 7},
    "dominated": {"color": "#8fb8de", "size": 7},
    "front": {"color": "#d1495b", "size": 9},
    "knee": {"color": "#ffb400", "symbol": "star", "size": 15, "line": {"color": "#d1495b", "width": 1.5}},
    "uncompressed": {"color": "#222222", "symbol": "diamond", "size": 11},
}

Sample = tuple[str, Mapping[str, Measurement]]
"""A trial's number, empty for the uncompressed model, and its measurements."""


def front_figure(study: StudyRecord, trials: Sequence[TrialRecord], front: Collection[int]) -> go.Figure:
    """Every trial by its objectives: the front with its knee, what it dominates, and in grey what is infeasible or was pruned.

    Two objectives are one plot with the front's attainment line, intervals and constraints; three or four are the
    lower triangle of a scatter matrix. The view is on what is feasible: infeasible trials far off are counted in the
    legend and come into view by zooming out.

    Args:
        trials: all of the study; those that did not get to an objective are missing where it is an axis.
        front: numbers of the trials on the front.
    """
    objectives = objectives_of(study)
    samples = _samples(study, trials, front, objectives)
    ranges = {o.name: _view(o, samples, study) for o in objectives}
    size = len(objectives) - 1
    figure = _triangle(size)
    for column, row in combinations(range(len(objectives)), 2):
        x, y = objectives[column], objectives[row]
        place: dict[str, Any] = {"row": row, "col": column + 1}
        for kind, of_kind in samples.items():
            trace = _scatter(kind, of_kind, x, y, ranges, attained=kind == "front" and size == 1)
            figure.add_trace(trace.update(showlegend=(column, row) == (0, 1)), **place)
        _add_bounds(figure, study, x, y, place)
        figure.update_xaxes(range=ranges[x.name], **_axis(x, labelled=row == size, alone=size == 1), **place)
        figure.update_yaxes(range=ranges[y.name], **_axis(y, labelled=column == 0, alone=size == 1), **place)
    figure.update_layout(
        LAYOUT,
        title_text=f"Pareto front: {len(front)} of {len(trials)} trials{_predicted(study, objectives)}; "
        f"uncompressed: {reference_name(study)}",
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "font_size": 11},
        margin={"l": 65, "r": 15, "t": 80, "b": 50},
        hovermode="closest",
    )
    return figure


def _triangle(size: int) -> go.Figure:
    """Empty plots in the lower triangle of a square, with axes shared by rows and columns."""
    cells = [[{} if column <= row else None for column in range(size)] for row in range(size)]
    shared: dict[str, Any] = {"shared_xaxes": "columns", "shared_yaxes": "rows"}
    return make_subplots(size, size, specs=cells, horizontal_spacing=0.02, vertical_spacing=0.03, **shared)


def _predicted(study: StudyRecord, objectives: Sequence[Objective]) -> str:
    """The objectives that were predicted instead of measured, as the end of a title."""
    names = [o.name for o in objectives if o.name in study.baseline and study.baseline[o.name].is_predicted]
    return f"; {', '.join(names)} predicted" if names else ""


def _samples(
    study: StudyRecord, trials: Sequence[TrialRecord], front: Collection[int], objectives: Sequence[Objective]
) -> dict[str, list[Sample]]:
    """Samples by what they are drawn as, in drawing order."""
    members = [trial for trial in trials if trial.number in front]
    others = [trial for trial in trials if trial.number not in front]
    points = [Point.of(trial, objectives) for trial in members]
    knee = pick(points, objectives, "knee", study.baseline).trial if points else None
    samples = {
        "infeasible": _newest(trials, lambda trial: trial.state == "infeasible"),
        "pruned": _newest(trials, lambda trial: trial.state == "pruned"),
        "dominated": _newest(others, lambda trial: trial.state == "complete"),
        "front": _those(members, lambda trial: True),
        "knee": _those(members, lambda trial: trial.number == knee),
        "uncompressed": [("", study.baseline)],
    }
    if not samples["pruned"]:
        del samples["pruned"]
    return samples


def _those(trials: Sequence[TrialRecord], belongs: Callable[[TrialRecord], bool]) -> list[Sample]:
    return [(str(trial.number), trial.measurements) for trial in trials if belongs(trial)]


def _newest(trials: Sequence[TrialRecord], belongs: Callable[[TrialRecord], bool]) -> list[Sample]:
    """The last `MOST_POINTS` of the trials that belong to a kind."""
    return _those(trials, belongs)[-MOST_POINTS:]


def _scatter(
    kind: str, samples: Sequence[Sample], x: Objective, y: Objective, ranges: Mapping[str, Any], attained: bool
) -> go.Scatter:
    """The samples that have both values; with the line and the intervals where `attained`."""
    labels, first, second = _sorted_by_values(samples, x, y)
    is_inside = [_within(a, ranges[x.name]) and _within(b, ranges[y.name]) for a, b in zip(first, second, strict=True)]
    outside = is_inside.count(False)
    trace = go.Scatter(
        x=[_short(measured.value) for measured in first],
        y=[_short(measured.value) for measured in second],
        text=labels,
        name=f"{kind} ({outside} out of view)" if outside else kind,
        mode="lines+markers" if attained else "markers",
        marker=_LOOKS[kind],
        legendgroup=kind,
        hovertemplate=f"{kind} %{{text}}<br>{x.name} %{{x}}<br>{y.name} %{{y}}<extra></extra>",
    )
    if attained:
        # To the right of a point, its y is attained up to the next point where x is minimised; mirrored otherwise.
        shape = "hv" if x.direction == "minimize" else "vh"
        trace.line = {"shape": shape, "color": _LOOKS[kind]["color"], "width": 1.5}
        trace.error_x, trace.error_y = _interval(first), _interval(second)
    return trace


def _sorted_by_values(
    samples: Sequence[Sample], x: Objective, y: Objective
) -> tuple[list[str], list[Measurement], list[Measurement]]:
    """Labels and both measurements of the samples that have both, in ascending order."""
    known = [(label, m[x.name], m[y.name]) for label, m in samples if x.name in m and y.name in m]
    known.sort(key=lambda sample: (sample[1].value, sample[2].value))
    return [label for label, _, _ in known], [a for _, a, _ in known], [b for _, _, b in known]


def _interval(measured: Sequence[Measurement]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [_short(m.high - m.value) for m in measured],
        "arrayminus": [_short(m.value - m.low) for m in measured],
        "thickness": 0.8,
        "width": 2,
        "color": "#e0929c",
    }


def _view(objective: Objective, samples: Mapping[str, Sequence[Sample]], study: StudyRecord) -> list[float] | None:
    """The axis' range: all that is feasible, the front's intervals and bounds not far off; None leaves it open."""
    front = _measured(samples["front"], objective)
    feasible = _measured([*samples["dominated"], *samples["uncompressed"]], objective)
    values = [measured.value for measured in feasible] + [end for m in front for end in (m.low, m.value, m.high)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    bounds = [c.bound for c in study.spec.constraints if c.metric == objective.name]
    near = [bound for bound in bounds if low - (high - low) <= bound <= high + (high - low)]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.08 * (high - low)
    return [_short(low - margin), _short(high + margin)] if margin else None


def _measured(samples: Iterable[Sample], objective: Objective) -> list[Measurement]:
    return [measurements[objective.name] for _, measurements in samples if objective.name in measurements]


def _within(measurement: Measurement, view: Sequence[float] | None) -> bool:
    return view is None or view[0] <= measurement.value <= view[1]


def _add_bounds(figure: go.Figure, study: StudyRecord, x: Objective, y: Objective, place: dict[str, Any]) -> None:
    line: dict[str, Any] = {"line": {"color": "#666666", "width": 1, "dash": "dot"}}
    for constraint in study.spec.constraints:
        if constraint.metric == x.name:
            figure.add_vline(constraint.bound, **line, **place)
        elif constraint.metric == y.name:
            figure.add_hline(constraint.bound, **line, **place)


def _axis(objective: Objective, labelled: bool, alone: bool) -> dict[str, Any]:
    better = "less is better" if objective.direction == "minimize" else "more is better"
    name = f"{objective.name} [{objective.unit}], {better}" if alone else f"{objective.name}<br>[{objective.unit}]"
    return {
        "title_text": name if labelled else None,
        "title_font_size": 12 if alone else 10,
        "tickformat": "~s" if objective.unit in ("bytes", "FLOPs", "BOPs", "count") else None,
        "gridcolor": "#e8e8e8",
        "linecolor": "#999999",
        "zeroline": False,
    }


def _short(value: float) -> float:
    """Five significant digits: more than a screen shows."""
    return float(f"{value:.5g}")
