"""How far a study is, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ..analysis.budget_rules import ended
from ..store.records import StudyRecord
from ..store.store import Store
from ..store.trial_state import TrialState
from .progress import reason_rows

STOPPED = "stopped"
"""An older name of the state "pruned" in the document of `status`, which its readers may still use."""


@dataclass(frozen=True)
class Reason:
    """Why trials did not complete: how many ended in which state for it; no state where several did."""

    trials: int
    state: str | None
    reason: str


@dataclass(frozen=True)
class StudyStatus:
    """How far a study is.

    Attributes:
        trials: that ended and are charged to the budget; `trials_wanted` is the budget, None without one.
        front: trials on the front; `hypervolume` is the front's, None before there is one.
        trials_by_state: state -> number of trials.
        retries: trials that ran the policy of an earlier one again.
        reasons: why trials did not complete, the most frequent first.
        remark: what is to be known of how it is searched.
    """

    study: str
    workload: str
    target: str
    objectives: Sequence[str]
    created: datetime
    trials: int
    trials_wanted: int | None
    front_points: int
    hypervolume: float | None
    constraints: Sequence[str]
    sampler: str
    seed: int
    workers: int
    budget: Mapping[str, Any]
    trials_by_state: Mapping[str, int]
    retries: int
    front: Sequence[int]
    reasons: Sequence[Reason]
    remark: str | None

    def to_dict(self) -> dict[str, Any]:
        """The document that `slimfront status --format json` prints."""
        return {**asdict(self), "created": self.created.isoformat()}


def study_status(store: Store, name: str) -> StudyStatus:
    """How far a study is.

    Raises:
        StoreError: there is no such study.
    """
    study, trials, front = store.get_study(name), store.trial_summaries(name), store.current_front(name)
    spec = study.spec
    states = [trial.state for trial in trials]
    return StudyStatus(
        **{**study_summary(store, study, ended(trials)), "created": study.created},
        constraints=list(map(str, spec.constraints)),
        sampler=spec.sampler,
        seed=spec.seed,
        workers=spec.workers,
        budget=spec.budget.model_dump(mode="json"),
        trials_by_state={
            **{state.value: states.count(state) for state in TrialState},
            STOPPED: states.count(TrialState.PRUNED),
        },
        retries=sum(trial.retry_of is not None for trial in trials),
        front=list(front.members) if front else [],
        reasons=[Reason(int(count), state or None, reason) for count, state, reason in reason_rows(trials)],
        remark=study.remark,
    )


def study_summary(store: Store, study: StudyRecord, trials: int) -> dict[str, Any]:
    """A study in a list of studies, as plain JSON values; `trials` of it have ended."""
    front, spec = store.current_front(study.name), study.spec
    return {
        "study": study.name,
        "workload": spec.workload,
        "target": spec.target,
        "objectives": list(spec.objectives),
        "created": study.created.isoformat(),
        "trials": trials,
        "trials_wanted": spec.budget.trials,
        "front_points": len(front.members) if front else 0,
        "hypervolume": front.hypervolume if front else None,
    }
