"""What happens in a search, as values: the screen, the dashboard and callbacks of a caller listen to these.

An event comes after what it reports is stored, `Preparing` before what it announces. Listeners are called in the driver's main thread, one after the other; what a
listener raises ends the search, all that finished being stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.measurement import Measurement
from ..spaces.policies.policy import Policy
from ..studies.files.remade import Remade
from ..studies.store.records import ReferenceRecord, TrialRecord

if TYPE_CHECKING:  # torch takes seconds to import
    from ..compression.recovery.learning_rate import FoundTraining


@dataclass(frozen=True)
class Preparing:
    """A part of what precedes the first trial begins.

    Attributes:
        what: it is, in words; nothing is stored of it.
    """

    what: str


@dataclass(frozen=True)
class ReferenceSettled:
    """What speed-ups of the study are counted from: chosen just now, or when the study began."""

    reference: ReferenceRecord
    is_new: bool


@dataclass(frozen=True)
class TrainingFound:
    """The learning rate of a new study, and what its recoveries compute with, were found on the model.

    Attributes:
        has_rate: whether the learning rate was looked for, which a study file may give.
        epochs: that recoveries are offered.
        seconds: that finding it took.
    """

    found: FoundTraining
    has_rate: bool
    epochs: Sequence[float]
    seconds: float


@dataclass(frozen=True)
class QuietMomentTaken:
    """The reference's latency was measured again.

    Attributes:
        before: the one that milliseconds were in the scale of.
        is_quieter: whether they follow the new one from now on.
    """

    before: Measurement
    now: Measurement
    is_quieter: bool


@dataclass(frozen=True)
class ReferenceNotMeasured:
    """The reference's latency was not measured again, for a reason."""

    reason: str


@dataclass(frozen=True)
class TrialStarted:
    """A policy was proposed and its trial stored as running.

    Attributes:
        retry_of: the trial whose policy it runs again; None of a new policy.
    """

    trial: int
    policy: Policy
    retry_of: int | None


@dataclass(frozen=True)
class StageRecorded:
    """A stage of a running trial ended, such as "counted", "timed" or "scored", at a rung of its recovery."""

    trial: int
    stage: str
    rung: int


@dataclass(frozen=True)
class TrialFinished:
    """A trial ended: its record says in which state, for what reason, and with which measurements."""

    trial: TrialRecord


@dataclass(frozen=True)
class DuplicateProposed:
    """A proposal was not tried, as an earlier trial had its policy."""

    trial: int
    duplicate_of: int


@dataclass(frozen=True)
class FrontChanged:
    """The front got other members because of a trial that ended or was measured again.

    Attributes:
        members: numbers of its trials, ascending.
        joined: whether the trial is a new member.
    """

    trial: TrialRecord
    members: tuple[int, ...]
    joined: bool


@dataclass(frozen=True)
class SensitivityMeasured:
    """The damage of one more choice alone is known."""

    measured: int
    total: int


@dataclass(frozen=True)
class SensitivityUnmeasured:
    """The damage of some choices alone stays unknown, for a reason."""

    reason: str


@dataclass(frozen=True)
class SamplerFellBack:
    """The study's sampler left proposing to another one, for a reason."""

    trial: int
    reason: str


@dataclass(frozen=True)
class ClusterRemarked:
    """Something is to be known of the machines that trials run on: a node is left out, or has other versions."""

    text: str


@dataclass(frozen=True)
class TrialConfirmed:
    """A point of the front was measured again at the end of the search.

    Attributes:
        confirmed: points so far, this one too.
        total: points of the front as it is now.
    """

    trial: int
    confirmed: int
    total: int


@dataclass(frozen=True)
class TrialUnconfirmed:
    """A point of the front could not be measured again at the end of the search, for a reason; its row has it too."""

    trial: int
    reason: str


@dataclass(frozen=True)
class FilesRemade:
    """A trial that joined the front late has its files again, which had not been kept."""

    trial: int
    remade: Remade


Event = (
    Preparing
    | ReferenceSettled
    | TrainingFound
    | QuietMomentTaken
    | ReferenceNotMeasured
    | TrialStarted
    | StageRecorded
    | TrialFinished
    | DuplicateProposed
    | FrontChanged
    | SensitivityMeasured
    | SensitivityUnmeasured
    | SamplerFellBack
    | ClusterRemarked
    | TrialConfirmed
    | TrialUnconfirmed
    | FilesRemade
)
Listener = Callable[[Event], None]
