"""How the trials of a search are run, here or over Ray: the parts that must not differ."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ...core.errors import ArtifactsError, WorkerStartError
from ...core.interrupts import Interrupts
from ...core.threads import usable_threads
from ...hardware_profiles.bench.bench import cores_for_workers
from ..confirmation.scoring_task import ScoringTask
from ..proposal import Proposal
from ..trials.artifacts_folder import storing
from ..trials.given_workload import pickled_registrations
from ..trials.prepared_study import PreparedStudy
from ..trials.worker import Stage
from ..trials.worker_setup import WorkerSetup

if TYPE_CHECKING:
    from ..driver import Search  # for annotations only: workers do without the database

LOG = "workers.log"
"""What workers print, in the study's artifacts folder."""


Task = Proposal | ScoringTask
"""What a worker runs, stage by stage."""


class Work(Protocol):
    """The source of tasks, which hears of each stage: a search with its trials, or the scoring of its front.

    Attributes:
        is_over: whether there is no other task, counting those that run.
    """

    @property
    def is_over(self) -> bool: ...

    def propose(self) -> Task | None:
        """The next task; None where there is none now."""
        ...

    def advance(self, number: int, stage: Stage) -> bool:
        """Take a stage of a task; whether the next one is wanted. One that is not has ended."""
        ...

    def finish(self, number: int) -> None:
        """End a task whose stages have all been taken, unless it has ended."""
        ...

    def lose(self, number: int, reason: str) -> None:
        """End a task whose worker is gone for a reason that is not the task's: it is handed out again."""
        ...


class Runner(Protocol):
    """Runs tasks on workers of its own, which live until it is closed."""

    @property
    def slots(self) -> int:
        """How many tasks can run at once."""
        ...

    def run(self, work: Work, interrupts: Interrupts) -> None:
        """Run tasks until there is none left.

        Raises:
            KeyboardInterrupt: the run was interrupted; tasks that run are left to be closed.
            ArtifactsError: the artifacts folder cannot be written to.
            WorkerStartError: no worker can start.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...


def run_trials(search: Search, runner: Runner) -> None:
    """As `try_trials`, and end the workers."""
    with closing(runner):
        try_trials(search, runner)


def try_trials(search: Search, runner: Runner) -> None:
    """Run the trials of a search to its end or to an interrupt, which closes those that run as interrupted.

    Raises:
        KeyboardInterrupt, ArtifactsError, WorkerStartError: as `Runner.run`, when everything is stored.
    """
    try:
        with Interrupts() as interrupts:
            with storing(search.folder):
                search.try_uncompressed()
            runner.run(search, interrupts)
    finally:
        search.interrupt()  # before the workers end: what interrupts this process may have ended them


def measuring_setup(prepared: PreparedStudy) -> WorkerSetup:
    """What a process needs that measures the uncompressed model, on one GPU however many a trial has."""
    return replace(
        WorkerSetup.of(prepared, prepared.context.threads),
        compute=prepared.spec.compute.model_copy(update={"gpus": min(1, prepared.spec.compute.gpus)}),
        pickled_workload=prepared.pickled_workload,
        registrations=pickled_registrations(),
    )


def worker_setup(search: Search, workers: int) -> WorkerSetup:
    """What workers need; with `workers` > 0 they leave the bench's cores free and share the others."""
    prepared, spec = search.prepared, search.spec
    threads = usable_threads(cores_for_workers(prepared.target)) // workers if workers else prepared.context.threads
    threads = int(spec.compute.cpus or threads)
    return replace(
        measuring_setup(prepared),
        threads=max(1, threads),
        compute=spec.compute,
        constraints=spec.constraints,
        reference=search.reference,
        kept_off_bench=workers > 0,
        checkpoint_s=spec.budget.checkpoint_s,
    )


def raise_fault(stage: Stage) -> None:
    """Raise if the fault would affect every trial.

    Raises:
        ArtifactsError: the trial's files could not be written.
        WorkerStartError: no worker could start.
    """
    if stage.fault == "storage":
        raise ArtifactsError(stage.reason)
    if stage.fault == "start":
        raise WorkerStartError(f"no worker can start: {stage.reason}")
