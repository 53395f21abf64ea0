"""What the store gives back: frozen values, cut off from the database they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from ...core.measurement import Measurement
from ...core.metrics import FRACTION, Quality
from ...spaces.policies.float_precision import FLOAT32, FLOAT_PRECISIONS, FloatPrecision
from ...spaces.policies.policy import Policy
from ..study_file.spec import StudySpec
from .trial_state import TrialState

INTERRUPTED = "interrupted before it ended"
"""The reason of a trial whose search was stopped while it ran, in words."""

ORPHANED = f"{INTERRUPTED}: the search's process died"
"""The reason of a trial whose search's process died while it ran, perhaps by the trial's own doing, in words."""

FREE_DIGESTS = frozenset(Policy(float_precision=precision).digest for precision in FLOAT_PRECISIONS)
"""The digests of the policies that leave a model as it is: to read each trial's policy would take longer than counting trials."""

SIMULATED = "one choice alone, simulated in float"
"""Method of a sensitivity's divergence."""


@dataclass(frozen=True)
class FreeDeployment:
    """The uncompressed model in one of the float precisions of its runtime: what a user gets without compressing.

    Attributes:
        precision: as a policy names it.
        computes_in: the type that it stands for on the target, such as "bfloat16".
        is_default: whether the runtime computes so by itself.
        figures: name -> what was measured; `speedup_float32` and `accuracy_drop` are paired with the model in float32. Empty where
            there is but one deployment, which then is the baseline, and where one cannot be measured.
        problem: why it cannot be measured, else None.
    """

    precision: FloatPrecision
    computes_in: str
    is_default: bool
    figures: Mapping[str, Measurement] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class QuietMoment:
    """The reference's latency as it was measured at a moment when nothing of the search ran."""

    at: datetime
    latency: Measurement


@dataclass(frozen=True)
class ReferenceRecord:
    """What the speed-ups of a study are counted from: the free deployment that was chosen when it began.

    Attributes:
        precision: the chosen one, as a policy names it.
        name: what it is called wherever speed-ups stand, such as "openvino default: bfloat16".
        reason: why it was chosen.
        deployments: all that were measured, the runtime's default first; none in a study that began without a choice.
        moments: when its latency was measured, in order; milliseconds come from the quietest.
    """

    precision: FloatPrecision
    name: str
    reason: str
    deployments: Sequence[FreeDeployment] = ()
    moments: Sequence[QuietMoment] = ()

    @property
    def over_float32(self) -> Measurement | None:
        """Its own speed-up over the uncompressed model in float32; None where it is that."""
        chosen = (each for each in self.deployments if each.precision == self.precision != FLOAT32)
        return next((each.figures["speedup_float32"] for each in chosen), None)


@dataclass(frozen=True)
class MeasurementRecord:
    """One measurement as it was made: `trial` is None for the study's baseline."""

    trial: int | None
    measurement: Measurement
    rung: int
    target: str | None
    made_at: datetime


TIMED = "timed"
"""The key of a study's machine with how latency is timed there."""


@dataclass(frozen=True)
class StudyRecord:
    """A study.

    Attributes:
        machine: the processor and its like, and by `TIMED` what the target's card says of how latency is timed.
        baseline: the reference's measurements, empty until they are made.
        remark: what is to be known of how it is searched, such as that another sampler had to take over.
        reference: what speed-ups are counted from; None before it is chosen, and of a study that began before there was a choice,
            whose reference is the uncompressed model in float32.
        quality: what `accuracy` is.
    """

    name: str
    spec: StudySpec
    workload_fingerprint: str
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    created: datetime
    baseline: Mapping[str, Measurement]
    remark: str | None = None
    reference: ReferenceRecord | None = None
    quality: Quality = FRACTION

    def is_timed_as(self, other: StudyRecord) -> bool:
        """Whether latencies of both may be compared, as far as is known: an earlier version did not note it."""
        ours, theirs = self.machine.get(TIMED, {}), other.machine.get(TIMED, {})
        return all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())


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
        """From its start to its end; 0 while it runs, and where the clock was set back meanwhile."""
        return max(0.0, (self.finished - self.started).total_seconds()) if self.finished else 0.0

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


@dataclass(frozen=True, kw_only=True)
class FrontSize:
    """How large a study's front was at one moment; `trials` had ended by then."""

    hypervolume: float
    trials: int
    made_at: datetime


@dataclass(frozen=True, kw_only=True)
class FrontRecord(FrontSize):
    """A study's front at one moment: trial numbers, ascending."""

    members: tuple[int, ...]


@dataclass(frozen=True)
class SensitivityRecord:
    """The damage that one choice of one knob does alone.

    Attributes:
        choice: an int, a float or a text, as the knob offers it.
        digest: of the policy that was simulated.
        kl: the damage, in nats where the outputs are of one classifier, else as the metric `damage` has it.
        seconds: it took; 0 where it was measured by an earlier study, whose name is `source`.
    """

    knob: str
    choice: int | float | str
    digest: str
    kl: Measurement
    seconds: float
    source: str | None = None


@dataclass(frozen=True)
class ArtifactPlace:
    """Where a study's files lie: in an artifact store of its own, `prefix`, within a folder or URL that several may share."""

    root: str
    prefix: str


@dataclass(frozen=True)
class ArtifactRecord:
    """A file of a trial, or of a study's reference.

    Attributes:
        path: the file's name; without a `key`, as in studies of before, the path it was recorded with.
        key: where it lies in the study's artifact store.
        removed_at: when it was let go; None while it is kept.
    """

    kind: str
    path: str
    sha256: str
    bytes: int
    made_at: datetime
    key: str | None = None
    removed_at: datetime | None = None


@dataclass(frozen=True)
class TargetRecord:
    """A target as profiled: its card and the fingerprint of the machine it was measured on."""

    name: str
    card: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    measured_at: datetime
