"""What the terminal shows of a study: the list of studies, a study's progress, one trial, the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ...core.measurement import Measurement
from ...core.metrics import METRICS, metric_of
from ...spaces.policies.resolved import as_layer_policies
from ..analysis.newest_front import front_points, objectives_of, why_no_front
from ..analysis.selection import pick
from ..analysis.significance import doubts
from ..analysis.verdict import verdict
from ..files.executed import executed_precisions
from ..files.trial_log import last_lines
from ..reference_wording import has_other_precision, quality_text, reference_text, remark_text
from ..store.records import MeasurementRecord, StudyRecord, TrialRecord
from ..store.store import Store
from ..terminal import Fitting, add_row, commands, facts, rows_table, words
from ..wording import (
    bounds_text,
    channel_rows,
    count_text,
    excess_text,
    full_text,
    layer_rows,
    moment,
    recovery_text,
    short_text,
    spread_text,
    width_text,
)
from .progress import (
    budget_text,
    growth_text,
    next_commands,
    reason_rows,
    sensitivity_text,
    states_text,
)
from .status import StudySummary

MORE_COLUMNS = ("accuracy", "speedup", "speedup_float32", "latency_ms", "artifact_bytes", "flops")
"""The columns of the front after the objectives; the speed-up over float32 where that is not the reference's precision."""

MOST_COLUMNS = 8
"""The most columns that fit a terminal 100 characters wide."""

KNEE, NOISY, PREDICTED = "*", "~", "^"


def studies_table(studies: Sequence[StudySummary]) -> RenderableType:
    """A row per study."""
    table = rows_table(("study", "workload", "target", "trials>", "front>", "hypervolume>", "created"))
    for study in studies:
        trials = f"{study.trials} of {study.trials_wanted}" if study.trials_wanted else str(study.trials)
        volume = "" if study.hypervolume is None else f"{study.hypervolume:.4g}"
        front = str(study.front_points), volume
        add_row(table, (study.study, study.workload, study.target, trials, *front, moment(study.created)))
    if not table.row_count:
        return Text("no study in the database yet; `slimfront search STUDY.yaml` makes one")
    return table


def status_report(store: Store, name: str) -> RenderableType:
    """How far a study is, how its front grew, why trials failed, and what to type next.

    Raises:
        StoreError: there is no such study.
    """
    study, trials, front = store.get_study(name), store.trial_summaries(name), store.current_front(name)
    sensitivities = store.sensitivities(name)
    spec = study.spec
    workers = f"{spec.workers} workers" if spec.workers else "in one process"
    known = facts(
        [
            ("workload", spec.workload),
            ("target", spec.target),
            ("reference", reference_text(study)),
            ("accuracy", study.quality.words),
            *([("outputs", study.quality.outputs)] if study.quality.outputs else []),
            ("objectives", ", ".join(spec.objectives)),
            ("constraints", ", ".join(map(str, spec.constraints)) or "none"),
            ("search", f"{spec.sampler}, seed {spec.seed}, {workers}, since {moment(study.created)}"),
            *([("sensitivity", sensitivity_text(sensitivities))] if spec.sensitivity else []),
            *([("remark", remark)] if (remark := remark_text(study)) else []),
            ("budget", budget_text(spec.budget, trials)),
            ("trials", states_text(trials)),
            ("front", growth_text(front, store.front_sizes(name), trials)),
            *([("verdict", sentence)] if (sentence := verdict(store, name)) else []),
        ]
    )
    parts: list[RenderableType] = [Text(name, style="bold"), known]
    if reasons := reason_rows(trials):
        parts += ["", rows_table(("trials>", "ended", "because"), reasons)]
    return Group(*parts, commands("Next", next_commands(study, trials, front)))


def trial_report(store: Store, name: str, number: int) -> RenderableType:
    """One trial: how it ended, its policy per layer, and every figure ever measured of it.

    Raises:
        StoreError: there is no such study or trial.
    """
    trial = store.get_trial(name, number)
    reference = ("speed-ups are over", reference_text(store.get_study(name)))
    known = facts([*_trial_facts(trial), reference])
    parts: list[RenderableType] = [Text(f"{name}, trial {number}", style="bold"), known]
    if channels := channel_rows(trial.policy):
        parts += ["", rows_table(("channel group", "removed>", "kept, width included>"), channels)]
    if layers := layer_rows(trial.policy, executed_precisions(store, name, number)):
        parts += ["", rows_table(("layer", "weight bits>", "activation bits>", "sparsity>", "ran in"), layers)]
    if log := last_lines(store, name, number):
        parts += ["", Text("Its log ends with", style="bold"), Text("\n".join(log), style="dim")]
    return Group(*parts, "", _measurements(store.measurement_history(name, number)))


def front_table(store: Store, name: str) -> RenderableType:
    """The front under the uncompressed model, best first by the first objective; or why there is none.

    Raises:
        StoreError: there is no such study.
    """
    study = store.get_study(name)
    points, objectives = front_points(store, study), objectives_of(study)
    if not points:
        return words(f"{name} has no front yet: {why_no_front(store.trial_summaries(name))}")
    columns = _columns(study)
    header = (f"{column.replace('_', ' ')}>" for column in columns)  # spaces, where a narrow terminal can break them
    table = rows_table(("trial>", *header), narrow=True)
    add_row(table, ("baseline", *_cells(study.baseline, columns, ())), style="dim")
    knee = pick(points, objectives, "knee", study.baseline).trial
    for point in points:
        trial = f"{KNEE} {point.trial}" if point.trial == knee else str(point.trial)
        add_row(table, (trial, *_cells(point.measurements, columns, study.spec.objectives)))
    title = f"{name}: {count_text(len(points), 'point')}, workload {study.spec.workload}, target {study.spec.target}"
    counted = f"{quality_text(study)}\nspeed-ups are over {reference_text(study)}"
    shown = [point.measurements[column] for point in points for column in columns if column in point.measurements]
    doubtful = Text("\n" + "\n".join(doubts(points, objectives)), style="yellow")
    legend = words(f"{_legend(shown)}\n{counted}", "dim")
    return Group(words(title, "bold"), "", table, legend, doubtful)


def _columns(study: StudyRecord) -> list[str]:
    """The metrics of the table: the objectives, the latency at each of several shapes, then what is usually asked for."""
    more = MORE_COLUMNS if has_other_precision(study) else (c for c in MORE_COLUMNS if c != "speedup_float32")
    shapes = (name for name in study.baseline if metric_of(name) == "latency_ms")
    return list(dict.fromkeys((*study.spec.objectives, *shapes, *more)))[:MOST_COLUMNS]


def _cells(measured: Mapping[str, Measurement], columns: Sequence[str], spread: Sequence[str]) -> list[str]:
    """One cell per column, the columns in `spread` with their interval; empty where nothing was measured."""
    cells = []
    for measurement in (measured.get(column) for column in columns):
        if measurement is None:
            cells.append("")
            continue
        cell = short_text(measurement.value, measurement.unit)
        if measurement.name in spread:
            cell = f"{cell} {spread_text(measurement)}".strip()
        mark = PREDICTED if measurement.is_predicted else NOISY if measurement.noisy else ""
        cells.append(f"{mark} {cell}".strip())
    return cells


def _legend(shown: Sequence[Measurement]) -> str:
    lines = [
        f"{KNEE} the knee, which `slimfront export` takes by default",
        "baseline: the uncompressed model; flops: multiply-adds; ±: the wider half of the 95 % interval",
    ]
    if predicted := next((measurement for measurement in shown if measurement.is_predicted), None):
        lines.append(f"{PREDICTED} {predicted.method}; not measured")
    if any(measurement.noisy for measurement in shown):
        lines.append(f"{NOISY} noisy: the interval stayed wider than the protocol asks for")
    return "\n" + "\n".join(lines)


def _trial_facts(trial: TrialRecord) -> list[tuple[str, str]]:
    known = [("state", trial.account)]
    known += [
        (
            violation.constraint,
            f"violated by {excess_text(violation)}"
            if violation.excess > 0
            else f"met, {excess_text(violation)} to spare",
        )
        for violation in trial.violations
    ]
    if trial.retry_of is not None:
        known.append(("retry of", f"trial {trial.retry_of}"))
    known += [("worker", trial.worker or "not recorded"), ("started", moment(trial.started))]
    if trial.finished:
        known.append(("finished", f"{moment(trial.finished)}, after {trial.seconds:.1f} s"))
    known += [
        ("policy", trial.digest),
        ("width", width_text(trial.policy)),
        ("recovery", recovery_text(trial.policy)),
    ]
    if changed := as_layer_policies(trial.policy).layers:
        known.append(("layers", f"{len(changed)} changed, all others at full precision and density"))
    else:
        known.append(("layers", "all at full precision and density"))
    return known


def _measurements(history: Sequence[MeasurementRecord]) -> RenderableType:
    """All figures, metric by metric, oldest first; those a newer one replaced are dim."""
    if not history:
        return Text("Nothing was measured.")
    wide = rows_table(("measurement", "value>", "95 % low>", "high>", "unit", "n>", "method", "rung>", ""))
    narrow = rows_table(("measurement", "value>", "low>", "high>", "unit", "n>", "rung>", ""))
    wide.columns[0].no_wrap = narrow.columns[0].no_wrap = True  # names are copied from here into study files
    order = [
        *METRICS,
        *(metric_of(record.measurement.name) for record in history),
    ]  # the latter are of packages that are gone
    newest = {record.measurement.name: record for record in history}
    for record in sorted(history, key=lambda record: order.index(metric_of(record.measurement.name))):
        m = record.measurement
        cells = (m.name, full_text(m.value, m.unit), *bounds_text(m), m.unit, str(m.n), m.method, str(record.rung))
        replaced = record is not newest[m.name]
        remark = "replaced" if replaced else "noisy" if m.noisy else ""
        style = "dim" if replaced else ""
        add_row(wide, (*cells, remark), style)
        add_row(narrow, (*cells[:6], str(record.rung), "old" if replaced else remark), style)
    left_out = Text(
        "\nlow, high: of the 95 % interval; a wider terminal, or a pipe, shows the methods too", style="dim"
    )
    return Group(
        Fitting(wide, Group(narrow, left_out)),
        Text("\nflops are multiply-adds: one fused multiply-add is one FLOP", style="dim"),
    )
