"""What every evaluator is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from ..core.errors import EvaluationError
from ..core.measurement import Measurement
from ..core.metrics import Metric, Phase
from ..hardware_profiles.bench.timer import Timer
from ..hardware_profiles.cards.target import Target
from ..hardware_profiles.runtimes.base import Artifact, Runtime
from ..spaces.policies.candidate import Candidate
from ..spaces.policies.float_precision import FLOAT32, FloatPrecision
from ..workloads.workload import Workload
from .scores import Scores

T = TypeVar("T")

PREDICTABLE = ("speedup", "latency_ms", "throughput", "speedup_float32")
"""Names of the metrics that a latency table predicts."""


@dataclass(frozen=True)
class Reference:
    """The uncompressed model on the same target as its user would run it anyway, which candidates are compared with.

    Attributes:
        artifact: its artifact.
        latency_ms: its latency on the quiet machine, one batch.
        validation, test: its scores per split; None where that split was not scored yet.
        scoring_seconds: that scoring it on the search-validation split took.
        over_float32: its own `speedup_float32`; None where it is the uncompressed model in float32.
        precision: of its floats, as a policy names it.
        was_timed_here: whether `latency_ms` says how fast this machine is when it is quiet; not where the study began on another.
    """

    artifact: Artifact
    latency_ms: float
    validation: Scores | None = None
    test: Scores | None = None
    scoring_seconds: float = 0.0
    over_float32: Measurement | None = None
    precision: FloatPrecision = FLOAT32
    was_timed_here: bool = True


@dataclass(frozen=True)
class Context:
    """Where candidates are evaluated: constant over a search.

    Attributes:
        workload, target, runtime: what is compressed, and where it runs.
        bench: times artifacts.
        reference: None only while the reference itself is evaluated.
        threads: that scoring may use; timing uses the target's.
        metrics: that the study names; some are made only then.
        timing_seconds: the time budget of one timing; it ends earlier once the interval is narrow enough.
        scoring_limit_s: seconds after which scoring in the main thread is given up; None where the process itself is ended, or lets it
            take as long as it likes.
    """

    workload: Workload
    target: Target
    runtime: Runtime
    bench: Timer | None = None
    reference: Reference | None = None
    threads: int = 1
    metrics: Sequence[str] = ()
    timing_seconds: float = 2.0
    scoring_limit_s: float | None = None


@dataclass(frozen=True)
class LoweredCandidate:
    """What is evaluated, as far as a phase has it.

    Attributes:
        candidate: the compressed model; None in the confirmation, which has the files alone.
        artifact: what the runtime loads; None in the phase "counted".
        packed: the packed file; None until the trial's files are kept.
        test: its scores on the test split, where they are known; else the confirmation makes them.
    """

    candidate: Candidate | None
    artifact: Artifact | None = None
    packed: Path | None = None
    test: Scores | None = None


class Evaluator(ABC):
    """Makes some metrics of a candidate. A class names them; each phase of a trial asks for its evaluators.

    Attributes:
        name: how the registry and errors call it.
        metrics: what it can make.
        phases: when it runs.
        on_request: it runs only where the study names one of its metrics, because it costs time or special hardware.
        source: "bench", it needs the target's machine; "table", it stands in for a target that cannot be reached; None, it
            needs neither.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    phases: ClassVar[tuple[Phase, ...]]
    on_request: ClassVar[bool] = False
    source: ClassVar[Literal["bench", "table"] | None] = None

    @abstractmethod
    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        """One measurement for each of `metrics` that has a meaning for the workload and the candidate, in their order.

        Raises:
            EvaluationError: the number cannot be produced for this candidate.
        """

    def refusal(self, target: Target) -> str | None:
        """Why a target does not provide its metrics; None if it does. For a remote target only the card is checked."""
        if self.source == "bench" and target.predict:
            return f"a latency table predicts {', '.join(PREDICTABLE)} and nothing else"
        if self.source == "table" and not target.predict:
            return "the target is measured and not predicted"
        return None


def needed(value: T | None, why: str) -> T:
    """`value`, which an evaluator cannot do without.

    Raises:
        EvaluationError: it is None; the message is `why`.
    """
    if value is None:
        raise EvaluationError(why)
    return value
