"""What a worker is given once, at its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...evaluators.evaluator import Reference
from ...hardware_profiles.cards.target import Target
from ...spaces.models.channel_groups import ChannelGroup
from ...studies.study_file.constraint import Constraint
from ...studies.study_file.parts import ComputeSpec, RungsSpec
from .prepared_study import PreparedStudy
from .shared_pickle import SharedPickle


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker receives once, at its start; plain values that can be sent to other processes.

    Attributes:
        workload, workload_options, base_folder: what `load_workload` takes.
        groups: the model's channel groups, found once by the driver.
        reference: the uncompressed model, measured once by the driver; None until it is measured.
        constraints: a trial ends early where one on size or latency is violated.
        kept_off_bench: whether this worker leaves the bench's cores free.
        threads: for training and scoring; fewer where the worker has fewer cores.
        metrics: the ones that the study names; some are measured only on request.
        rungs: when a recovery is judged before its end.
        checkpoint_s: seconds after which a recovery is saved again; None saves none.
        compute: the device that models are on, and what reads their data.
        pickled_workload: the workload, if it is an object of the searching program.
        registrations: what that program registered, made by `pickled_registrations`.
    """

    workload: str
    workload_options: Mapping[str, object]
    base_folder: Path
    target: Target
    groups: Sequence[ChannelGroup]
    seed: int
    batch_size: int
    constraints: Sequence[Constraint] = ()
    reference: Reference | None = None
    kept_off_bench: bool = False
    threads: int = 1
    metrics: Sequence[str] = ()
    rungs: RungsSpec | None = None
    checkpoint_s: float | None = None
    compute: ComputeSpec = field(default_factory=ComputeSpec)
    pickled_workload: SharedPickle | None = None
    registrations: SharedPickle | None = None

    @classmethod
    def of(cls, prepared: PreparedStudy, threads: int) -> WorkerSetup:
        """What follows from a study alone, for a worker that is given its workload and times nothing."""
        spec = prepared.spec
        return cls(
            workload=spec.workload,
            workload_options=spec.workload_options,
            base_folder=spec.base_folder,
            target=prepared.target,
            groups=prepared.groups,
            seed=spec.seed,
            batch_size=spec.recovery.batch_size,
            threads=threads,
            metrics=spec.metrics,
            rungs=spec.rungs,
            compute=spec.compute,
        )
