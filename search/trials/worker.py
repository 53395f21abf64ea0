"""One trial, top to bottom, as a worker runs it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Literal, TypeVar

import torch
from torch import nn

from ...compression.batches import subset
from ...compression.finite import require_finite
from ...compression.pruning.prune import is_structurally_changed, pruned_copy, reestimate_batch_norm
from ...compression.quantization.candidates import make_candidate
from ...compression.recovery.checkpoint import Checkpoints
from ...core.errors import EvaluationError, TargetError, TrialError, WorkloadError, describe_exception
from ...core.interrupts import raise_if_interrupted
from ...core.measurement import Measurement
from ...core.metrics import Phase
from ...core.texts import one_line
from ...core.threads import usable_threads
from ...evaluators.accuracy import score
from ...evaluators.evaluator import Context, LoweredCandidate
from ...evaluators.registry import measure
from ...evaluators.scores import Scores
from ...hardware_profiles.bench.bench import bench_cores, cores_for_workers
from ...hardware_profiles.bench.timer import TIMING_SECONDS, Timer
from ...hardware_profiles.profiling.fingerprint import require_fit
from ...hardware_profiles.runtimes.base import Artifact, get_runtime
from ...hardware_profiles.runtimes.lowered import lowered
from ...spaces.policies.candidate import Candidate
from ...spaces.policies.policy import Policy
from ...spaces.policies.resolved import effective_policy
from ...studies.files.study_files import PRECISIONS
from ...workloads.workload import Workload
from ..cluster.timers import timer_of
from ..confirmation.scoring_task import ScoringTask
from .artifacts_folder import PROBE_BYTES, storage_problem, unwritable
from .kept_files import keep, keep_precisions
from .set_up_check import check_loss, check_scoring
from .training.recoveries import Recoveries
from .trial_log import kept_log, log_traceback
from .worker_setup import WorkerSetup

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """What one step of a trial found.

    Attributes:
        name: the phase that ended, "failed", or "checkpointed": its recovery was saved, and goes on.
        rung: 0 before recovery, then one more each time the recovery is judged.
        measurements: made in this step.
        artifacts: files of the trial so far, kind -> file.
        reason: why the trial failed, else None.
        fault: why the policy is not to blame for a failure and is tried again: "start", no worker can start; "storage", its files
            cannot be written; "time", the search ran out of time; "lost", something else ended its process.
        final: whether no more training follows.
        epochs: of recovery done so far; a fraction of an epoch is a fraction of the training data.
        scores: on a part of the test split, at the end of a search; else None.
        worker: host name, process id and number of threads; trained weights depend on the threads in their last bits.
    """

    name: Phase | Literal["failed", "checkpointed"]
    rung: int = 0
    measurements: Sequence[Measurement] = ()
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    reason: str | None = None
    fault: Literal["start", "storage", "time", "lost"] | None = None
    final: bool = True
    epochs: float = 0
    scores: Scores | None = None
    worker: str = field(default_factory=lambda: f"{platform.node()}:{os.getpid()}, threads {torch.get_num_threads()}")


class Worker:
    """Runs trials one after the other; the model, its data and the bench are set up once."""

    def __init__(self, setup: WorkerSetup, workload: Workload | None = None) -> None:
        self._bench_cores = bench_cores(setup.target.threads)
        if setup.kept_off_bench:
            os.sched_setaffinity(0, cores_for_workers(setup.target))
        threads = min(setup.threads, usable_threads())  # it may run on a smaller machine than the driver
        torch.set_num_threads(threads)
        self.setup = setup
        self._training = Recoveries.of(setup, workload)
        self.workload = self._training.workload
        self._context = Context(
            workload=self.workload,
            target=setup.target,
            runtime=get_runtime(setup.target.runtime),
            bench=self._bench(),
            reference=setup.reference,
            threads=threads,
            metrics=setup.metrics,
            timing_seconds=TIMING_SECONDS,
        )

    def warm_up(self) -> None:
        """Load the runtime and start the bench's process, so that the first trial's time does not include it."""
        if self._context.bench is not None and self._context.reference is not None:
            self._context.bench.executed_precisions(self._context.reference.artifact.path)
            self._context.bench.ready()

    def try_reference(self) -> None:
        """Run the uncompressed model's artifact over one batch of validation data; raises what fails."""
        assert self.setup.reference is not None
        data = self.workload.validation
        few = [data[index] for index in range(min(self.setup.target.batch, len(data)))]
        score(self.setup.reference.artifact, few, self._context)

    def measured(self, measure: Callable[[Context], T], scoring_limit_s: float | None) -> T:
        """What `measure` returns of the workload on its target."""
        return measure(replace(self._context, scoring_limit_s=scoring_limit_s))

    def check_set_up(self, policy: Policy) -> None:
        """Do with the uncompressed model what a trial of `policy` needs of the user's code: what raises here is no policy's fault."""
        check_scoring(self._context)
        if policy.recovery.epochs and policy.recovery.data == "train":
            check_loss(self.workload, self.setup.batch_size)

    def run(
        self, policy: Policy, folder: Path, recovered: Path | None = None, checkpoints: Path | None = None
    ) -> Iterator[Stage]:
        """Compress and score `policy`, stage by stage; files go to `folder`.

        To stop a trial, stop iterating. Any exception becomes a last stage named "failed"; a process that dies is handled by its owner.

        Args:
            recovered: weights of the same structure after the same recovery, which is then skipped.
            checkpoints: folder that recovery is saved in, and taken up from; None saves none.

        Raises:
            KeyboardInterrupt: Ctrl-C, even if the user's code turned it into another exception.
        """
        yield from self._guarded(self._stages(policy, folder, recovered, self._checkpoints(checkpoints)), folder)

    def confirm(self, task: ScoringTask) -> Iterator[Stage]:
        """Score the reference and the artifacts of a task, one a stage; an exception becomes a last stage named "failed", as in `run`."""
        yield from self._guarded(self._confirmed(task), task.folder)

    def _guarded(self, stages: Generator[Stage], folder: Path) -> Iterator[Stage]:
        try:
            while (stage := self._next(stages, folder)) is not None:
                yield stage
        finally:
            stages.close()

    def _checkpoints(self, folder: Path | None) -> Checkpoints | None:
        every_s = self.setup.checkpoint_s
        return None if folder is None or every_s is None else Checkpoints(folder, every_s)

    def _next(self, stages: Generator[Stage], folder: Path) -> Stage | None:
        try:
            return finite(next(stages, None))
        except BaseException as error:  # a user's model, metric or loss may raise anything; other trials may be fine
            raise_if_interrupted(error)
            return self._failed(error, folder)

    def _failed(self, error: BaseException, folder: Path) -> Stage:
        reference = self.setup.reference
        size = reference.artifact.bytes if reference is not None else PROBE_BYTES
        if (problem := storage_problem(folder, error, size)) is not None:
            rmtree(folder, ignore_errors=True)  # frees the space that storing the failure may need
            return Stage("failed", reason=unwritable(folder.parent, problem), fault="storage")
        log_traceback(folder, error)
        own_words = isinstance(error, (TrialError, TargetError, WorkloadError))
        reason = one_line(str(error)) if own_words else describe_exception(error)
        return Stage("failed", reason=reason, artifacts=kept_log(folder))

    def _confirmed(self, task: ScoringTask) -> Generator[Stage]:
        assert self.setup.reference is not None
        part = subset(self.workload.test, range(task.start, task.stop))
        reference = score(self.setup.reference.artifact, part, self._context, keep=task.folder / "outputs")
        yield Stage("confirmed", scores=replace(reference, kept=None))
        for path in task.artifacts.values():
            yield Stage("confirmed", scores=score(Artifact.of(path), part, self._context, reference=reference))

    def close(self) -> None:
        """End the bench's process."""
        if self._context.bench is not None:
            self._context.bench.close()

    def _stages(
        self, original: Policy, folder: Path, recovered: Path | None, checkpoints: Checkpoints | None
    ) -> Generator[Stage]:
        """Count, time, score, recover: the cheapest first; a violated constraint ends the trial."""
        if not self.setup.target.remote:  # a worker may be on a machine other than the driver's, which checked its own
            require_fit(self.setup.target, self._context.runtime)
        folder.mkdir(parents=True, exist_ok=True)
        model = self._pruned(self.workload.model, original)
        policy = effective_policy(original)  # in terms of the layers that are there now
        counted = measure(LoweredCandidate(Candidate(policy, model)), self._context, "counted")
        yield Stage("counted", measurements=counted)
        if self._out_of_bounds(counted):
            return
        self._reestimate(model, original)
        candidate, artifact = self._lower(policy, model, folder)
        # Before recovery: latency needs no trained weights, and a trial that is too slow ends here.
        timed = measure(LoweredCandidate(candidate, artifact), self._context, "timed")
        yield Stage("timed", measurements=timed, artifacts=self._precisions(artifact, folder))
        if self._out_of_bounds(timed):
            return
        if not policy.recovery.changes_weights:
            yield self._kept("scored", candidate, artifact, folder)
            return
        scored = measure(LoweredCandidate(candidate, artifact), self._context, "scored")
        yield Stage("scored", measurements=scored, final=False)
        marks = self._marks(policy)
        for trained, epochs in self._recoveries(original, model, marks, recovered, checkpoints):
            if trained is None:
                yield Stage("checkpointed", final=False)
                continue
            yield self._kept("recovered", *self._lower(policy, trained, folder), folder, rung_of(epochs, marks), epochs)

    def _marks(self, policy: Policy) -> Collection[float]:
        """Epochs after which a recovery is judged before its end."""
        return self.setup.rungs.marks(policy.recovery.epochs) if self.setup.rungs is not None else ()

    def _recoveries(
        self,
        original: Policy,
        model: nn.Module,
        marks: Collection[float],
        recovered: Path | None,
        checkpoints: Checkpoints | None,
    ) -> Iterator[tuple[nn.Module | None, float]]:
        """As `Recoveries.run`."""
        return self._training.run(original, model, marks, recovered, checkpoints)

    def _pruned(self, model: nn.Module, policy: Policy) -> nn.Module:
        setup = self.setup
        return pruned_copy(model, self.workload.example_input, policy, setup.groups, self.workload, setup.seed)

    def _reestimate(self, model: nn.Module, original: Policy) -> None:
        if is_structurally_changed(original, self.setup.groups):
            reestimate_batch_norm(model, self.workload.calibration)

    def _kept(
        self,
        phase: Literal["scored", "recovered"],
        candidate: Candidate,
        artifact: Artifact,
        folder: Path,
        rung: int = 0,
        epochs: float = 0,
    ) -> Stage:
        """The stage of a candidate after so many epochs of recovery: its files are kept, and it is scored."""
        files = keep(candidate, artifact, folder)
        measured = measure(LoweredCandidate(candidate, artifact, files["packed"].path), self._context, phase)
        return Stage(phase, rung, measured, files, final=epochs == candidate.policy.recovery.epochs, epochs=epochs)

    def _lower(self, policy: Policy, model: nn.Module, folder: Path) -> tuple[Candidate, Artifact]:
        require_finite(model)
        example = self.workload.example_input
        candidate = make_candidate(model, example, policy, self.workload.calibration)
        runtime = self._context.runtime
        return candidate, lowered(runtime, candidate, example, self.setup.target, folder / f"model{runtime.suffix}")

    def _precisions(self, artifact: Artifact, folder: Path) -> dict[str, Artifact]:
        """The precision each layer of the timed artifact runs in, as the runtime reports it; nothing if it was not timed."""
        if self._context.bench is None:
            return {}
        return {PRECISIONS: keep_precisions(self._context.bench.executed_precisions(artifact.path), folder)}

    def _out_of_bounds(self, measurements: Sequence[Measurement]) -> bool:
        values = {measurement.name: measurement.value for measurement in measurements}
        return any(c.metric in values and c.violation(values[c.metric]) > 0 for c in self.setup.constraints)

    def _bench(self) -> Timer | None:
        setup = self.setup
        if setup.reference is None or setup.target.predict:
            return None
        example, axes = self.workload.example_input, self.workload.dynamic_axes
        return timer_of(setup.target, setup.reference.artifact.path, example, self._bench_cores, axes)


def rung_of(epochs: float, marks: Collection[float]) -> int:
    """The rung that a recovery of so many epochs is at."""
    return 1 + sum(mark < epochs for mark in marks)


def finite(stage: Stage | None) -> Stage | None:
    """The stage itself; its measurements must be finite, to be compared in a front and stored in a database.

    Raises:
        EvaluationError: one is NaN or infinite; it is named.
    """
    for measured in stage.measurements if stage is not None else ():
        if not all(map(math.isfinite, (measured.value, measured.low, measured.high))):
            interval = f"{measured.value:g} in [{measured.low:g}, {measured.high:g}]"
            raise EvaluationError(f"{measured.name} is not finite: {interval}")
    return stage
