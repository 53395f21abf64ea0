"""How far a search is, in words: states, budget, the front's growth, and why trials are not on it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from ...core.texts import one_line
from ..analysis.budget_rules import ended
from ..analysis.convergence import hypervolume_at, outlook
from ..analysis.newest_front import excesses, why_no_front
from ..store.records import FrontRecord, FrontSize, SensitivityRecord, StudyRecord, TrialSummary
from ..store.trial_state import TrialState
from ..study_file.parts import BudgetSpec
from ..terminal import sparkline
from ..wording import count_text, excess_text

MOST_REASONS = 12
LONGEST_REASON = 300
"""Characters of a reason in a list; `slimfront show` has all that is stored."""

LONGEST_LINE = 40
"""Characters of the sparkline."""


def states_text(trials: Sequence[TrialSummary]) -> str:
    """How many trials came out in which way, and how many of all are retries."""
    counts = Counter(trial.state for trial in trials)
    text = ", ".join(f"{counts[state]} {state}" for state in TrialState if counts[state]) or "none yet"
    retries = sum(trial.retry_of is not None for trial in trials)
    return f"{text}; retries among them: {retries}" if retries else text


def sensitivity_text(sensitivities: Sequence[SensitivityRecord]) -> str:
    """How many choices were measured alone, and how long that took."""
    if not sensitivities:
        return "not measured"
    taken = sum(record.source is not None for record in sensitivities)
    seconds = sum(record.seconds for record in sensitivities)
    text = f"{count_text(len(sensitivities), 'choice')} alone, {seconds:.1f} s"
    return f"{text}; {taken} of them known from earlier studies" if taken else text


def budget_text(budget: BudgetSpec, trials: Sequence[TrialSummary]) -> str:
    """What was spent of the budget."""
    spent = ended(trials)
    parts = [f"{spent} of {budget.trials} trials"] if budget.trials else [f"{spent} trials so far"]
    if budget.timeout_s:
        parts.append(f"at most {budget.timeout_s:g} s a run")
    if budget.patience:
        parts.append(f"until {budget.patience} trials in a row hardly grow the front")
    return ", ".join(parts)


def growth_text(front: FrontRecord | None, fronts: Sequence[FrontSize], trials: Sequence[TrialSummary]) -> str:
    """Size of the front, and its hypervolume from the first of its snapshots to the last as numbers and a sparkline."""
    if front is None or not front.members:
        return f"none yet: {why_no_front(trials)}"
    first, last = fronts[0], fronts[-1]
    tried = max(last.trials, sum(trial.state.has_ended for trial in trials))
    line = sparkline(_volumes(fronts, tried))
    expected = outlook(fronts, tried)
    return (
        f"{count_text(len(front.members), 'point')}, hypervolume {last.hypervolume:.4g}\n"
        f"{line}  {first.hypervolume:.4g} at trial {first.trials}, last change at trial {last.trials} of {tried}"
        + (f"\n{expected}" if expected else "")
    )


def reason_rows(trials: Sequence[TrialSummary]) -> list[tuple[str, str, str]]:
    """(trials, state, reason) of everything that kept trials off the front, grouped, the most frequent first."""
    rows = [*_violated(trials), *_pruned(trials), *_broken(trials)]
    rows.sort(key=lambda row: -row[0])
    shown = [(str(count), state, text) for count, state, text in rows[:MOST_REASONS]]
    if left := rows[MOST_REASONS:]:
        shown.append((str(sum(count for count, _, _ in left)), "", f"{len(left)} more reasons"))
    return shown


def _violated(trials: Sequence[TrialSummary]) -> list[tuple[int, str, str]]:
    return [
        (len(beyond), TrialState.INFEASIBLE.value, f"{constraint} violated; the nearest by {excess_text(beyond[0])}")
        for constraint, beyond in excesses(trials).items()
    ]


def _pruned(trials: Sequence[TrialSummary]) -> list[tuple[int, str, str]]:
    rungs = [trial.rung for trial in trials if trial.rung is not None]
    if not rungs:
        return []
    where = " or ".join(map(str, sorted(set(rungs))))
    return [(len(rungs), TrialState.PRUNED.value, f"stopped at rung {where}: more training was not worth it")]


def _broken(trials: Sequence[TrialSummary]) -> list[tuple[int, str, str]]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for trial in trials:
        if trial.state in (TrialState.FAILED, TrialState.INTERRUPTED):
            reason = one_line(trial.reason or "", LONGEST_REASON)
            found[trial.state.value, re.sub(r"\d+", "#", reason)].append(
                reason
            )  # reasons that differ in numbers are one
    return [(len(reasons), state, reasons[0]) for (state, _), reasons in found.items()]


def next_commands(
    study: StudyRecord, trials: Sequence[TrialSummary], front: FrontRecord | None
) -> list[tuple[str, str]]:
    """(command, what it does) that make sense now."""
    name, budget = study.name, study.spec.budget.trials
    commands = []
    if budget is None or ended(trials) < budget:
        commands.append(("slimfront search STUDY.yaml", "goes on, if no other process is at it"))
    if front is not None and front.members:
        commands.append((f"slimfront front {name}", "the front as a table"))
        commands.append((f"slimfront export {name} --to DIR", "the knee of the front as a bundle"))
    elif not commands:
        commands.append(("slimfront search STUDY.yaml --trials N", "goes on with a larger budget"))
    return commands


def _volumes(fronts: Sequence[FrontSize], tried: int) -> list[float | None]:
    """The hypervolume after evenly spaced numbers of trials, at most `LONGEST_LINE` of them."""
    width = min(tried, LONGEST_LINE)
    marks = [round((i + 1) * tried / width) for i in range(width)]
    return [hypervolume_at(fronts, mark) if mark >= fronts[0].trials else None for mark in marks]
