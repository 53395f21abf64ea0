"""What the store gives back: frozen values, cut off from the database they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from ...core.measurement import Measurement
from ...spaces.policies.policy import Policy
from ..study_file.spec import StudySpec
from .trial_state import TrialState

INTERRUPTED = "interrupted before it ended"
"""The reason of a trial whose search was stopped while it ran, in words."""

ORPHANED = f"{INTERRUPTED}: the search's process died"
"""The reason of a trial whose search's process died while it ran, perhaps by the trial's own doing, in words."""

SIMULATED = "one choice alone, simulated in float"
"""Method of a sensitivity's divergence."""


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


@dataclass(frozen=True)
class Violation:
    """How a trial stands to one constraint.

    Attributes:
        constraint: as the study file writes it.
        excess: how far the trial lies beyond it, in the metric's unit; satisfied where it is not above 0.
    """

    metric: str
    constraint: str
    excess: float


@dataclass(frozen=True, kw_only=True)
class TrialSummary:
    """How a trial came out, without its policy and measurements: a few columns of its row.

    Attributes:
        reason: why it failed, is infeasible, was pruned or interrupted; of a complete trial a remark, or None.
        retry_of: number of the trial whose policy this one runs again.
        rung: that it was pruned at; None of all others.
        driver_died: whether its search's process died while it ran.
        violations: as far as constraints were judged.
    """

    number: int
    digest: str
    state: TrialState
    reason: str | None
    retry_of: int | None
    rung: int | None
    driver_died: bool
    started: datetime
    finished: datetime | None
    violations: Sequence[Violation]

    @property
    def seconds(self) -> float:
        """From its start to its end; 0 while it runs."""
        return (self.finished - self.started).total_seconds() if self.finished else 0.0

    @property
    def account(self) -> str:
        """How the trial ended and why, in words."""
        if self.state is TrialState.PRUNED or not self.reason:
            return self.reason or self.state
        return f"{self.state}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class TrialRecord(TrialSummary):
    """A trial with the newest measurement of each name."""

    study: str
    policy_json: str
    worker: str | None
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
