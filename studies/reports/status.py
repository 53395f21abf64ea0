"""How far a study is, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ..analysis.budget_rules import ended
from ..analysis.verdict import verdict
from ..reference_wording import reference_document, remark_text
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
class StudySummary:
    """A study in a list of studies.

    Attributes:
        trials: that ended and are charged to the budget; `trials_wanted` is the budget, None without one.
        front_points: how many trials are on the front; `hypervolume` is the front's, None before there is one.
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

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {**asdict(self), "created": self.created.isoformat()}


@dataclass(frozen=True)
class StudyStatus(StudySummary):
    """How far a study is; `to_dict` makes the document that `slimfront status --format json` prints.

    Attributes:
        front: trials on the front.
        trials_by_state: state -> number of trials.
        retries: trials that ran the policy of an earlier one again.
        reasons: why trials did not complete, the most frequent first.
        remark: what is to be known of how it is searched.
        reference: what speed-ups are counted from, as `reference_wording.reference_document` has it.
        metric: what `accuracy` is: {"metric", "unit", "higher_is_better", "margin", "outputs"}.
        verdict: a sentence where nothing of the front is worth more than the reference; else None.
    """

    constraints: Sequence[str]
    sampler: str
    seed: int
    workers: int | str
    budget: Mapping[str, Any]
    trials_by_state: Mapping[str, int]
    retries: int
    front: Sequence[int]
    reasons: Sequence[Reason]
    remark: str | None
    reference: Mapping[str, Any]
    metric: Mapping[str, Any]
    verdict: str | None


def study_status(store: Store, name: str) -> StudyStatus:
    """How far a study is.

    Raises:
        StoreError: there is no such study.
    """
    study, trials, front = store.get_study(name), store.trial_summaries(name), store.current_front(name)
    spec = study.spec
    states = [trial.state for trial in trials]
    return StudyStatus(
        **vars(_summary(store, study, ended(trials))),
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
        remark=remark_text(study),
        reference=reference_document(study),
        metric=asdict(study.quality),
        verdict=verdict(store, name),
    )


def study_summaries(store: Store) -> list[StudySummary]:
    """Every study of a database, oldest first."""
    paid = store.paid_trials()
    return [_summary(store, study, paid.get(study.name, 0)) for study in store.studies()]


def _summary(store: Store, study: StudyRecord, trials: int) -> StudySummary:
    front, spec = store.current_front(study.name), study.spec
    return StudySummary(
        study=study.name,
        workload=spec.workload,
        target=spec.target,
        objectives=list(spec.objectives),
        created=study.created,
        trials=trials,
        trials_wanted=spec.budget.trials,
        front_points=len(front.members) if front else 0,
        hypervolume=front.hypervolume if front else None,
    )
