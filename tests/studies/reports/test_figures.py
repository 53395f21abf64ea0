"""The figures of a study, their numbers by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.analysis.front import Objective
from slimfront.studies.reports.figures import MOST_POINTS, front_figure
from slimfront.studies.reports.heatmap import BIT_COLOURS, MOST_COLUMNS, policy_heatmap
from slimfront.studies.reports.sensitivity_figure import sensitivity_heatmap
from slimfront.studies.store.records import SensitivityRecord, StudyRecord, TrialRecord
from slimfront.studies.store.trial_state import TrialState
from slimfront.studies.study_file.spec import StudySpec

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DROP, SPEEDUP = Objective.of("accuracy_drop"), Objective.of("speedup")


def measured(spread: float = 0.0, **values: float) -> dict[str, Measurement]:
    return {n: Measurement(n, v, v - spread, v + 2 * spread, METRICS[n].unit) for n, v in values.items()}


def trial(number: int, state: str = "complete", policy: Policy = Policy(), spread: float = 0.0, **values: float):
    measurements = measured(spread, **values)
    reason = None if state == "complete" else "because"
    return TrialRecord(
        study="demo", number=number, policy_json=policy.to_json(), digest=policy.digest, state=TrialState(state), reason=reason,
        worker=None, retry_of=None, rung=None, driver_died=False, started=NOW, finished=NOW, violations=(),
        measurements=measurements,
    )  # fmt: skip


@pytest.fixture
def study(make_spec: Callable[..., StudySpec]) -> Callable[..., StudyRecord]:
    def make(*objectives: str, constraints: list[str] | None = None) -> StudyRecord:
        spec = make_spec(objectives=list(objectives), constraints=constraints or [])
        baseline = measured(accuracy_drop=0.0, latency_ms=10.0, speedup=1.0, artifact_bytes=1000.0, flops=50.0)
        return StudyRecord("demo", spec, "", {}, {}, NOW, baseline)

    return make


def by_name(figure) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data}


# The front


def test_trials_are_drawn_as_what_they_are(study):
    trials = [
        trial(0, accuracy_drop=0.04, latency_ms=2.0),
        trial(1, accuracy_drop=0.0, latency_ms=6.0),
        trial(2, accuracy_drop=0.01, latency_ms=3.0),
        trial(3, accuracy_drop=0.04, latency_ms=8.0),
        trial(4, "infeasible", accuracy_drop=0.05, latency_ms=1.0),
        trial(5, "infeasible", latency_ms=1.0),  # ended before it was scored
        trial(6, "failed"),
        trial(7, "running", accuracy_drop=0.0),
    ]
    traces = by_name(front_figure(study("accuracy_drop", "latency_ms"), trials, [0, 1, 2]))

    assert (traces["front"].x, traces["front"].y) == ((0.0, 0.01, 0.04), (6.0, 3.0, 2.0))
    assert traces["front"].text == ("1", "2", "0")
    assert traces["knee"].text == ("2",)
    assert (traces["dominated"].x, traces["dominated"].y) == ((0.04,), (8.0,))
    assert (traces["uncompressed"].x, traces["uncompressed"].y) == ((0.0,), (10.0,))
    # The view ends at 0.04 + 8 % of 0.04.
    assert traces["infeasible (1 out of view)"].x == (0.05,)


@pytest.mark.parametrize(("x", "shape"), [("accuracy_drop", "hv"), ("speedup", "vh")])
def test_the_line_is_what_the_front_attains(study, x: str, shape: str):
    # Minimised x: right of a point its y stays until the next. Maximised x: the next point's y holds left of it.
    trials = [trial(0, **{x: 1.0, "latency_ms": 2.0}), trial(1, **{x: 2.0, "latency_ms": 1.0})]
    front = by_name(front_figure(study(x, "latency_ms"), trials, [0, 1]))["front"]

    assert front.mode == "lines+markers"
    assert front.line.shape == shape


def test_front_points_show_their_intervals(study):
    trials = [trial(0, accuracy_drop=0.5, latency_ms=4.0, spread=0.25)]
    front = by_name(front_figure(study("accuracy_drop", "latency_ms"), trials, [0]))["front"]

    assert front.error_x.arrayminus == front.error_y.arrayminus == (0.25,)
    assert front.error_x.array == front.error_y.array == (0.5,)


def test_the_view_holds_what_is_feasible_and_bounds_that_are_near(study):
    trials = [
        trial(0, accuracy_drop=0.02, latency_ms=2.0),
        trial(1, "infeasible", accuracy_drop=0.9, latency_ms=1.0),
    ]
    bounds = ["accuracy_drop <= 0.04", "latency_ms <= 30"]  # the second lies more than the span of 8 beyond 10
    figure = front_figure(study("accuracy_drop", "latency_ms", constraints=bounds), trials, [0])

    assert figure.layout.xaxis.range == pytest.approx((-0.0032, 0.0432))  # 0 to 0.04, and 8 %
    assert figure.layout.yaxis.range == pytest.approx((2 - 0.64, 10 + 0.64))
    assert [(line.x0, line.x1) for line in figure.layout.shapes if line.x0 == line.x1] == [(0.04, 0.04)]
    assert [(line.y0, line.y1) for line in figure.layout.shapes if line.y0 == line.y1] == [(30, 30)]


def test_axes_have_units_and_say_what_is_better(study):
    layout = front_figure(study("speedup", "latency_ms"), [], []).layout

    assert layout.xaxis.title.text == "speedup [ratio], more is better"
    assert layout.yaxis.title.text == "latency_ms [ms], less is better"


def test_the_title_names_the_axes_that_are_predicted(study):
    made = study("accuracy_drop", "latency_ms")
    predicted = Measurement("latency_ms", 10, 9, 11, "ms", 80, "predicted by a latency table")
    elsewhere = replace(made, baseline={**made.baseline, "latency_ms": predicted})
    assert front_figure(elsewhere, [], []).layout.title.text == (
        "Pareto front: 0 of 0 trials; latency_ms predicted; uncompressed: float32"
    )
    assert front_figure(made, [], []).layout.title.text == "Pareto front: 0 of 0 trials; uncompressed: float32"


def test_three_objectives_are_a_triangle_of_pairs(study):
    trials = [trial(0, accuracy_drop=0.01, latency_ms=2.0, artifact_bytes=300.0)]
    figure = front_figure(study("accuracy_drop", "latency_ms", "artifact_bytes"), trials, [0])
    fronts = [trace for trace in figure.data if trace.name == "front"]

    assert sorted((trace.x[0], trace.y[0]) for trace in fronts) == [(0.01, 2.0), (0.01, 300.0), (2.0, 300.0)]
    assert [trace.showlegend for trace in fronts].count(True) == 1
    assert {trace.mode for trace in fronts} == {"markers"}
    titles = {axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())} - {None}
    assert titles == {"accuracy_drop<br>[fraction]", "latency_ms<br>[ms]", "artifact_bytes<br>[bytes]"}


def test_a_study_without_trials_has_a_figure_too(study):
    traces = by_name(front_figure(study("accuracy_drop", "latency_ms"), [], []))

    assert traces["uncompressed"].x == (0.0,)
    assert traces["front"].x == traces["knee"].x == ()


def test_a_large_study_stays_small(study):
    objectives = ("accuracy_drop", "latency_ms", "artifact_bytes", "flops")
    values = [dict(zip(objectives, (i / 7, i / 3, i * 7.0, i * 11.0), strict=True)) for i in range(10_000)]
    trials = [trial(i, "infeasible" if i % 2 else "complete", **value) for i, value in enumerate(values)]
    figure = front_figure(study(*objectives), trials, [0])

    newest = by_name(figure)["dominated"].text
    assert len(newest) == MOST_POINTS
    assert "9998" in newest
    text = figure.to_json()
    assert len(text) < 100_000
    assert "bdata" not in text  # plain lists, which every version of plotly.js reads


# The policies


def test_policies_are_columns_best_first():
    policies = [
        Policy(channels={"stem": 0.5}, layers={"stem": LayerPolicy(8, 8), "fc": LayerPolicy(2, 32, "2:4")}, width=0.5),
        Policy(layers={"stem": LayerPolicy(4, 32, 0.75), "extra": LayerPolicy(16)}),
    ]
    trials = [trial(i, policy=p, accuracy_drop=0.02 - i / 100) for i, p in enumerate(policies)]
    figure = policy_heatmap(trials, DROP, layers=["stem", "conv", "fc"], groups=["stem", "conv"])
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    weights, activations, zeroed, removed = maps

    assert {trace.x for trace in maps} == {("#1", "#0")}
    assert weights.y == activations.y == zeroed.y == ("stem", "conv", "fc", "extra")
    assert list(weights.z) == [[4, 8], [32, 32], [32, 2], [16, 32]]
    assert list(activations.z) == [[32, 8], [32, 32], [32, 32], [32, 32]]
    assert list(zeroed.z) == [[0.75, 0.0], [0.0, 0.0], [0.0, 0.5], [0.0, 0.0]]
    assert removed.y == ("stem", "conv")
    assert list(removed.z) == [[0.0, 0.75], [0.0, 0.5]]  # half of the width's half; the width alone
    assert [annotation.text for annotation in figure.layout.annotations] == [
        "weight bits", "activation bits", "weights zeroed", "channels removed",
    ]  # fmt: skip


def test_a_maximised_objective_has_its_largest_first():
    trials = [trial(number, speedup=value) for number, value in enumerate((1.0, 3.0, 2.0))]

    assert policy_heatmap(trials, SPEEDUP, layers=["fc"]).data[0].x == ("#1", "#2", "#0")


def test_panels_in_which_nothing_is_decided_are_left_out():
    bits = Policy(layers={"fc": LayerPolicy(32, 8)})
    only = policy_heatmap([trial(0, policy=bits, speedup=1.0)], SPEEDUP)
    nothing = policy_heatmap([trial(0, speedup=1.0)], SPEEDUP, layers=["fc"], groups=["fc"])

    assert [annotation.text for annotation in only.layout.annotations] == ["activation bits"]
    assert [annotation.text for annotation in nothing.layout.annotations] == ["weight bits"]


@pytest.mark.parametrize("bits", BIT_COLOURS)
def test_every_bit_width_has_its_own_colour(bits: int):
    figure = policy_heatmap([trial(0, speedup=1.0)], SPEEDUP, layers=["fc"])
    axis = figure.layout.coloraxis
    place = (bits - axis.cmin) / (axis.cmax - axis.cmin)
    low = [step for step in axis.colorscale if step[0] <= place][-1]
    high = next(step for step in axis.colorscale if step[0] >= place)

    assert low[1] == high[1] == BIT_COLOURS[bits]
    assert low[0] < place < high[0]


def test_the_legend_names_the_bits_in_use():
    policies = [Policy(layers={"fc": LayerPolicy(8, 8)}), Policy(layers={"fc": LayerPolicy(4, 8)})]
    figure = policy_heatmap([trial(i, policy=p, speedup=1.0) for i, p in enumerate(policies)], SPEEDUP)

    legend = {trace.name: trace.marker.color for trace in figure.data if trace.type == "scatter"}
    assert legend == {"4": BIT_COLOURS[4], "8": BIT_COLOURS[8]}


def test_a_long_front_is_spread_over_the_columns():
    trials = [trial(number, speedup=100.0 - number) for number in range(100)]
    figure = policy_heatmap(trials, SPEEDUP, layers=["fc"])
    columns = figure.data[0].x

    assert len(set(columns)) == MOST_COLUMNS
    assert (columns[0], columns[-1]) == ("#0", "#99")
    assert "40 of 100 front trials" in figure.layout.title.text
    assert figure.data[0].texttemplate is None  # too narrow for numbers


# Sensitivity


def test_single_damages_are_cells_by_layer_and_kind_of_knob():
    def record(knob: str, choice: float, nats: float) -> SensitivityRecord:
        return SensitivityRecord(knob, choice, "digest", Measurement("kl", nats, nats, nats, "nats", 64), 0.1)

    records = [
        record("0.student.width", 0.5, 0.1),
        record("1.blocks.0.fc1.weight_bits", 3, 0.001),
        record("2.blocks.0.fc1.activation_bits", 4, 0.0),
    ]
    (cells,) = sensitivity_heatmap(records).data
    assert list(cells.y) == ["student", "blocks.0.fc1"]
    assert list(cells.x) == ["width", "weight bits", "activation bits"]
    assert [list(row) for row in cells.z] == [[-1, None, None], [None, -3, -6]]  # nothing is fainter than 1e-6
    assert list(cells.text[1]) == ["", "3: 0.001", "4: 0"]
