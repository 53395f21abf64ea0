"""How far a search is, in words: states, budget, the front's growth, and why trials are not on it."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from .convergence import hypervolume_at, outlook
from .newest_front import excesses, why_no_front
from .records import INTERRUPTIONS, STOPPED_AT, FrontRecord, Outcome, SensitivityRecord, StudyRecord, TrialRecord
from .spec import BudgetSpec
from .terminal import sparkline
from .wording import count_text, excess_text

MOST_REASONS = 12
OUTCOMES: tuple[Outcome, ...] = ("running", "complete", "infeasible", "stopped", "failed")
"""In the order they are told in."""

TELLING_TRIALS = 5
"""Trials whose median duration is taken for what a trial takes."""

LONGEST_LINE = 40
"""Characters of the sparkline."""


def ended(trials: Sequence[TrialRecord]) -> int:
    """Trials charged to the budget: those that ended and were not interrupted; one that went on after it was stopped once."""
    stopped = {trial.number for trial in trials if trial.outcome == "stopped"}
    done = (trial for trial in trials if trial.state != "running" and trial.reason not in INTERRUPTIONS)
    return sum(trial.retry_of not in stopped for trial in done)


def states_text(trials: Sequence[TrialRecord]) -> str:
    """How many trials came out in which way, and how many of all are retries."""
    counts = Counter(trial.outcome for trial in trials)
    text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]) or "none yet"
    retries = sum(trial.retry_of is not None for trial in trials)
    return f"{text}; retries among them: {retries}" if retries else text


def charged_trials(sensitivities: Sequence[SensitivityRecord], trial_seconds: Sequence[float], workers: int) -> int:
    """Trials that measuring the sensitivity is charged as: its seconds over the median trial's, rounded up.

    No worker runs meanwhile, so each of `workers` counts. Nothing is charged before `TELLING_TRIALS` have ended.

    Args:
        trial_seconds: of trials that a worker ran.
    """
    seconds = sum(record.seconds for record in sensitivities)
    if len(trial_seconds) < TELLING_TRIALS or not seconds:
        return 0
    return math.ceil(seconds * max(1, workers) / statistics.median(trial_seconds))


def ran(trial: TrialRecord) -> bool:
    """Whether a worker ran the trial to its end; the uncompressed model's takes the baseline's figures over."""
    return trial.state != "running" and trial.reason not in INTERRUPTIONS and not trial.policy.is_uncompressed


def charged(study: StudyRecord, trials: Sequence[TrialRecord], sensitivities: Sequence[SensitivityRecord]) -> int:
    """`charged_trials` of a study."""
    return charged_trials(sensitivities, [trial.seconds for trial in trials if ran(trial)], study.spec.workers)


def sensitivity_text(sensitivities: Sequence[SensitivityRecord], charge: int) -> str:
    """What was measured before the first trial, and what it cost."""
    if not sensitivities:
        return "not measured"
    taken = sum(record.source is not None for record in sensitivities)
    seconds = sum(record.seconds for record in sensitivities)
    text = (
        f"{count_text(len(sensitivities), 'choice')} alone, {seconds:.1f} s, charged as {count_text(charge, 'trial')}"
    )
    return f"{text}; {taken} of them known from earlier studies" if taken else text


def budget_text(budget: BudgetSpec, trials: Sequence[TrialRecord], charge: int = 0) -> str:
    """What was spent of the budget; `charge` trials of it before the first one."""
    spent = ended(trials) + charge
    parts = [f"{spent} of {budget.trials} trials"] if budget.trials else [f"{spent} trials so far"]
    if charge:
        parts.append(f"{charge} of them for the sensitivity")
    if budget.timeout_s:
        parts.append(f"at most {budget.timeout_s:g} s a run")
    if budget.patience:
        parts.append(f"until {budget.patience} trials in a row hardly grow the front")
    return ", ".join(parts)


def growth_text(fronts: Sequence[FrontRecord], trials: Sequence[TrialRecord]) -> str:
    """Size of the front, and its hypervolume from the first snapshot to the last as numbers and a sparkline."""
    if not fronts or not fronts[-1].members:
        return f"none yet: {why_no_front(trials)}"
    first, last = fronts[0], fronts[-1]
    tried = max(last.trials, sum(trial.state != "running" for trial in trials))
    line = sparkline(_volumes(fronts, tried))
    expected = outlook(fronts, tried)
    return (
        f"{count_text(len(last.members), 'point')}, hypervolume {last.hypervolume:.4g}\n"
        f"{line}  {first.hypervolume:.4g} at trial {first.trials}, last change at trial {last.trials} of {tried}"
        + (f"\n{expected}" if expected else "")
    )


def reason_rows(trials: Sequence[TrialRecord]) -> list[tuple[str, str, str]]:
    """(trials, state, reason) of everything that kept trials off the front, grouped, the most frequent first."""
    rows = [
        (len(beyond), "infeasible", f"{constraint} violated; the nearest by {excess_text(constraint, min(beyond))}")
        for constraint, beyond in excesses(trials).items()
    ]
    stopped = [trial.reason or "" for trial in trials if trial.outcome == "stopped"]
    if stopped:
        rungs = sorted({reason.removeprefix(STOPPED_AT).split(",")[0].strip() for reason in stopped})
        rows.append((len(stopped), "stopped", f"{STOPPED_AT} {' or '.join(rungs)}: more training was not worth it"))
    failures: dict[str, list[str]] = defaultdict(list)
    for trial in trials:
        if trial.state == "failed":
            reason = " ".join((trial.reason or "").split())
            failures[re.sub(r"\d+", "#", reason)].append(reason)  # reasons alike but for their numbers are one
    rows += [(len(reasons), "failed", reasons[0]) for reasons in failures.values()]
    rows.sort(key=lambda row: -row[0])
    shown = [(str(count), state, text) for count, state, text in rows[:MOST_REASONS]]
    if left := rows[MOST_REASONS:]:
        shown.append((str(sum(count for count, _, _ in left)), "", f"{len(left)} more reasons"))
    return shown


def next_commands(
    study: StudyRecord, trials: Sequence[TrialRecord], fronts: Sequence[FrontRecord], charge: int = 0
) -> list[tuple[str, str]]:
    """(command, what it does) that make sense now."""
    name, budget = study.name, study.spec.budget.trials
    commands = []
    if budget is None or ended(trials) + charge < budget:
        commands.append(("slimfront search STUDY.yaml", "goes on, if no other process is at it"))
    if fronts and fronts[-1].members:
        commands.append((f"slimfront front {name}", "the front as a table"))
        commands.append((f"slimfront export {name} --to DIR", "the knee of the front as a bundle"))
    elif not commands:
        commands.append(("slimfront search STUDY.yaml --trials N", "goes on with a larger budget"))
    return commands


def _volumes(fronts: Sequence[FrontRecord], tried: int) -> list[float | None]:
    """The hypervolume after evenly spaced numbers of trials, at most `LONGEST_LINE` of them."""
    width = min(tried, LONGEST_LINE)
    marks = [round((i + 1) * tried / width) for i in range(width)]
    return [hypervolume_at(fronts, mark) if mark >= fronts[0].trials else None for mark in marks]
