"""Notes in Markdown on a study and on a trial, as the dashboard shows them. Pure functions of store records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...core.measurement import Measurement
from ..analysis.front import Objective, Point
from ..analysis.newest_front import objectives_of, why_no_front
from ..analysis.selection import pick
from ..analysis.significance import doubts
from ..reference_wording import has_other_precision, quality_text, reference_text, remark_text
from ..store.records import FrontRecord, StudyRecord, TrialRecord
from ..wording import (
    bounds_text,
    channel_rows,
    full_text,
    in_order,
    layer_rows,
    predicted_text,
    recovery_text,
    short_text,
    spread_text,
    width_text,
)
from .progress import states_text

MOST_ROWS = 40
"""The most points of the front in the table of a study's note."""

_MORE_COLUMNS = ("accuracy", "speedup", "speedup_float32", "latency_ms", "artifact_bytes", "flops", "test_accuracy")
"""The columns of the front after the objectives, as far as they were measured."""


def study_note(
    study: StudyRecord,
    trials: Sequence[TrialRecord],
    front: FrontRecord | None,
    points: Sequence[Point],
    verdict: str | None = None,
) -> str:
    """What is searched, how far it is, the winner with the command that exports it, and the front as a table.

    Args:
        trials: all of the study.
        front: the newest snapshot, None before the first.
        points: of that snapshot, best first by the first objective.
        verdict: a sentence where none of them is worth more than the reference.
    """
    spec = study.spec
    objectives = objectives_of(study)
    facts = [
        f"- Workload `{spec.workload}` on target `{spec.target}`",
        f"- Speed-ups are over {reference_text(study)}",
        f"- {quality_text(study).capitalize()}",
        f"- Objectives: {', '.join(_objective(objective) for objective in objectives)}",
        f"- Constraints: {', '.join(f'`{constraint}`' for constraint in spec.constraints) or 'none'}",
        f"- Trials: {states_text(trials)}",
    ]
    remarks = remark_text(study), verdict and verdict.capitalize(), predicted_text(study.baseline.values())
    facts += map("- {}".format, filter(None, remarks))
    if front is None or not points:
        return _page(f"# {study.name}", "\n".join(facts), f"No front yet: {why_no_front(trials)}.")
    facts.append(f"- Front: {len(points)} points, hypervolume {front.hypervolume:.4g}")
    winner = pick(points, objectives, "knee", study.baseline)
    return _page(
        f"# {study.name}",
        "\n".join(facts),
        "## Winner",
        f"Trial **{winner.trial}**, the knee of the front: {_summary(winner.measurements, objectives)}.",
        f"```\nslimfront export {study.name} --trial {winner.trial} --to DIR\n```",
        "## Front",
        "The newest figures: at its end a search times the front again, while the dashboard's own plots keep what each "
        "trial ended with.",
        _front_table(study, objectives, points, winner.trial),
        *_left_out(study, points),
        *(f"- {doubt}" for doubt in doubts(points, objectives)),
    )


def trial_note(trial: TrialRecord) -> str:
    """One trial's policy per layer and all that was measured of it."""
    policy = trial.policy
    parts = [
        f"# Trial {trial.number}",
        f"{trial.account}. Policy `{trial.digest}`. Width: {width_text(policy)}. Recovery: {recovery_text(policy)}.",
    ]
    parts.append("## Policy")
    if layers := layer_rows(policy):
        parts.append(_table(("layer", "weight bits", "activation bits", "sparsity"), _coded(layers)))
    if channels := channel_rows(policy):
        parts.append("### Channels")
        parts.append(_table(("channel group", "removed", "kept, width included"), _coded(channels)))
    if not layers and not channels:
        parts.append("No layer and no channel group is changed on its own.")
    rows = [
        (m.name, full_text(m.value, m.unit), " to ".join(filter(None, bounds_text(m))), m.unit, str(m.n), m.method)
        for m in in_order(trial.measurements)
    ]
    return _page(*parts, "## Measured", _table(("measurement", "value", "95 % interval", "unit", "n", "method"), rows))


def _objective(objective: Objective) -> str:
    return f"{objective.name} [{objective.unit}, {'less' if objective.direction == 'minimize' else 'more'} is better]"


def _summary(measured: Mapping[str, Measurement], objectives: Sequence[Objective]) -> str:
    names = dict.fromkeys((*(objective.name for objective in objectives), "accuracy", "speedup", "artifact_bytes"))
    return ", ".join(
        f"{m.name} {short_text(m.value, m.unit)} {m.unit if m.unit == 'ms' else ''}".rstrip()
        for m in (measured[name] for name in names if name in measured)
    )


def _front_table(study: StudyRecord, objectives: Sequence[Objective], points: Sequence[Point], winner: int) -> str:
    spread = [objective.name for objective in objectives]
    measured = {name: m.unit for point in points for name, m in point.measurements.items()}
    columns = [name for name in dict.fromkeys((*spread, *_more_columns(study))) if name in measured]
    rows = [("uncompressed", *_cells(study.baseline, columns, ()))]
    for point in points[:MOST_ROWS]:
        label = f"**{point.trial}** (knee)" if point.trial == winner else str(point.trial)
        rows.append((label, *_cells(point.measurements, columns, spread)))
    return _table(("trial", *(f"{name} [{measured[name]}]" for name in columns)), rows)


def _more_columns(study: StudyRecord) -> list[str]:
    return [name for name in _MORE_COLUMNS if name != "speedup_float32" or has_other_precision(study)]


def _left_out(study: StudyRecord, points: Sequence[Point]) -> list[str]:
    left = len(points) - MOST_ROWS
    return [f"{left} more points: `slimfront front {study.name}`"] if left > 0 else []


def _cells(measured: Mapping[str, Measurement], columns: Sequence[str], spread: Sequence[str]) -> list[str]:
    """One cell per column, the columns in `spread` with their interval; empty where nothing was measured."""
    cells = []
    for name in columns:
        measurement = measured.get(name)
        if measurement is None:
            cells.append("")
            continue
        cell = full_text(measurement.value, measurement.unit)
        cells.append(f"{cell} {spread_text(measurement)}".rstrip() if name in spread else cell)
    return cells


def _coded(rows: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    """The first cell, a name of the user's, as code: no character of it is read as Markdown."""
    return [(f"`{name}`", *others) for name, *others in rows]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"
