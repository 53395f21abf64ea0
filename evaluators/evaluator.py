"""What every evaluator is, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..core.measurement import Measurement
from ..hardware_profiles.bench.timer import Timer
from ..hardware_profiles.cards.target import Target
from ..hardware_profiles.runtimes.base import Artifact, Runtime
from ..spaces.policies.candidate import Candidate
from ..workloads.workload import Workload
from .scores import Scores


@dataclass(frozen=True)
class Reference:
    """The uncompressed model on the same target, which candidates are compared with.

    Attributes:
        artifact: its artifact.
        latency_ms: its latency on the quiet machine, one batch.
        validation, test: its scores per split; None where that split was not scored yet.
        scoring_seconds: that scoring it on the search-validation split took.
    """

    artifact: Artifact
    latency_ms: float
    validation: Scores | None = None
    test: Scores | None = None
    scoring_seconds: float = 0.0


@dataclass(frozen=True)
class Context:
    """Where candidates are evaluated: constant over a search.

    Attributes:
        workload, target, runtime: what is compressed, and where it runs.
        bench: times artifacts.
        reference: None only while the reference itself is evaluated.
        threads: that scoring may use; timing uses the target's.
    """

    workload: Workload
    target: Target
    runtime: Runtime
    bench: Timer | None = None
    reference: Reference | None = None
    threads: int = 1


@dataclass(frozen=True)
class LoweredCandidate:
    """A candidate and its artifact, which is None for what is counted before lowering."""

    candidate: Candidate
    artifact: Artifact | None = None


class Evaluator(Protocol):
    """Turns a lowered candidate into measurements.

    Attributes:
        metrics: names of the measurements it can make, keys of `METRICS`.
        needs_artifact: whether the candidate has to be lowered first.
    """

    metrics: tuple[str, ...]
    needs_artifact: bool

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        """One measurement for each of `metrics` that the workload gives a meaning, in their order.

        Raises:
            EvaluationError: the number cannot be produced for this candidate.
        """
        ...
