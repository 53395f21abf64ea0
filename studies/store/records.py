"""What the store gives back: frozen values, cut off from the database they were read from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from ...core.measurement import Measurement
from ...core.metrics import METRICS
from ...spaces.policies.policy import Policy
from ..study_file.spec import StudySpec
from . import tables

INTERRUPTED = "interrupted before it ended"
"""Reason of a trial whose driver stopped; its policy is tried again, and it is not charged to the budget."""

ORPHANED = f"{INTERRUPTED}: the search's process died"
"""The same of a trial whose driver was killed, found when the study is next opened; perhaps the trial killed it."""

INTERRUPTIONS = (INTERRUPTED, ORPHANED)
"""Reasons of trials that say nothing of their policy."""

SIMULATED = "one choice alone, simulated in float"
"""Method of a sensitivity's divergence."""

STOPPED_AT = "stopped at rung"
"""What the reason of a trial begins with whose recovery was not worth finishing; its state is "infeasible"."""

State = Literal["running", "complete", "infeasible", "failed"]
Outcome = State | Literal["stopped"]


@dataclass(frozen=True)
class MeasurementRecord:
    """One measurement as it was made: `trial` is None for the study's baseline."""

    trial: int | None
    measurement: Measurement
    rung: int
    target: str | None
    made_at: datetime


@dataclass(frozen=True)
class StudyRecord:
    """A study.

    Attributes:
        baseline: the uncompressed model's measurements, empty until they are made.
        remark: what is to be known of how it is searched, such as that another sampler had to take over.
    """

    name: str
    spec: StudySpec
    workload_fingerprint: str
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    created: datetime
    baseline: Mapping[str, Measurement]
    remark: str | None = None


class Trial:
    """What is known of a trial without its policy and measurements; `TrialSummary` and `TrialRecord` are such trials.

    Attributes:
        state: "complete" met every constraint; "infeasible" and "failed" have a `reason`.
        retry_of: number of the trial whose policy this one runs again.
        violations: constraint -> how far beyond it, as far as they were judged.
    """

    number: int
    digest: str
    state: State
    reason: str | None
    retry_of: int | None
    started: datetime
    finished: datetime | None
    violations: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """From its start to its end; 0 while it runs."""
        return (self.finished - self.started).total_seconds() if self.finished else 0.0

    @property
    def outcome(self) -> Outcome:
        """The state, told apart from "infeasible" where a recovery was not worth finishing: no constraint need be violated."""
        return "stopped" if (self.reason or "").startswith(STOPPED_AT) else self.state

    @property
    def account(self) -> str:
        """How the trial ended and why, in words."""
        if self.outcome == "stopped" or not self.reason:
            return self.reason or self.state
        return f"{self.state}: {self.reason}"


@dataclass(frozen=True)
class TrialSummary(Trial):
    """How a trial came out: a few columns of its row, which lists of many trials are made from."""

    number: int
    digest: str
    state: State
    reason: str | None
    retry_of: int | None
    started: datetime
    finished: datetime | None
    violations: Mapping[str, float]


@dataclass(frozen=True)
class TrialRecord(Trial):
    """A trial with the newest measurement of each name."""

    study: str
    number: int
    policy_json: str
    digest: str
    state: State
    reason: str | None
    worker: str | None
    retry_of: int | None
    started: datetime
    finished: datetime | None
    violations: Mapping[str, float]
    measurements: Mapping[str, Measurement]

    @cached_property
    def policy(self) -> Policy:
        """The policy the trial compressed with."""
        return Policy.from_json(self.policy_json)


@dataclass(frozen=True)
class FrontRecord:
    """A study's front at one moment: trial numbers, ascending; `trials` had ended by then."""

    members: tuple[int, ...]
    hypervolume: float
    trials: int
    made_at: datetime


@dataclass(frozen=True)
class SensitivityRecord:
    """The damage that one choice of one knob does alone.

    Attributes:
        choice: an int, a float or a text, as the knob offers it.
        digest: of the policy that was simulated.
        kl: divergence from the uncompressed outputs, in nats.
        seconds: it took; 0 where it was measured by an earlier study, whose name is `source`.
    """

    knob: str
    choice: int | float | str
    digest: str
    kl: Measurement
    seconds: float
    source: str | None = None


@dataclass(frozen=True)
class ArtifactRecord:
    """A file of a trial; `path` is as it was recorded."""

    kind: str
    path: str
    sha256: str
    bytes: int
    made_at: datetime


@dataclass(frozen=True)
class TargetRecord:
    """A target as profiled: its card and the fingerprint of the machine it was measured on."""

    name: str
    card: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    measured_at: datetime


def measurement_of(row: tables.MeasurementRow) -> Measurement:
    """The measurement in a row."""
    return Measurement(**{field.name: getattr(row, field.name) for field in fields(Measurement)})


def study_of(row: tables.Study, baseline: Iterable[tables.MeasurementRow]) -> StudyRecord:
    """The study in a row, with its baseline's rows."""
    return StudyRecord(
        name=row.name,
        spec=StudySpec.from_json(row.spec),
        workload_fingerprint=row.workload_fingerprint,
        versions=row.versions,
        machine=row.machine,
        created=row.created,
        baseline={measured.name: measurement_of(measured) for measured in baseline},
        remark=row.remark,
    )


def sensitivity_of(row: tables.Sensitivity) -> SensitivityRecord:
    """The sensitivity in a row."""
    kl = Measurement("kl", row.kl, row.low, row.high, METRICS["kl"].unit, row.n, SIMULATED)
    return SensitivityRecord(row.knob, json.loads(row.choice), row.digest, kl, row.seconds, row.source)


def trial_of(study: str, row: tables.Trial, measured: Mapping[str, Measurement]) -> TrialRecord:
    """The trial in a row, with its newest measurements."""
    return TrialRecord(
        study=study,
        number=row.number,
        policy_json=row.policy,
        digest=row.digest,
        state=row.state,  # type: ignore[arg-type]  # the table's check allows no other
        reason=row.reason,
        worker=row.worker,
        retry_of=row.retry_of,
        started=row.started,
        finished=row.finished,
        violations=row.violations or {},
        measurements=measured,
    )
