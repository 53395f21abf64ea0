"""How the trials of a search are run, here or over Ray: the parts that must not differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from ...core.errors import ArtifactsError, WorkerStartError
from ...core.interrupts import Interrupts
from ...core.threads import usable_threads
from ...hardware_profiles.bench.bench import cores_for_workers
from ..driver import Search
from ..trials.artifacts_folder import storing
from ..trials.given_workload import pickled_registrations
from ..trials.worker import Stage
from ..trials.worker_setup import WorkerSetup

LOG = "workers.log"
"""What workers print, in the study's artifacts folder."""


class Runner(Protocol):
    """Runs the trials that a search proposes, on workers of its own.

    Each proposal of `Search.propose` is run stage by stage, and each stage handed to `Search.advance`, which records it and
    decides whether the next one is wanted. `Search.finish` follows the last stage of a trial that was not ended by then.
    """

    def run(self, search: Search, interrupts: Interrupts) -> None:
        """Run trials until the search proposes none.

        Raises:
            KeyboardInterrupt: the run was interrupted; trials that run are left to be closed.
            ArtifactsError: the artifacts folder cannot be written to.
            WorkerStartError: no worker can start.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...


def run_trials(search: Search, runner: Runner) -> None:
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
        try:
            search.interrupt()  # before the workers end: what interrupts this process may have ended them
        finally:
            runner.close()


def worker_setup(search: Search, workers: int) -> WorkerSetup:
    """What workers need; with `workers` > 0 they leave the bench's cores free and share the others."""
    prepared, spec = search.prepared, search.spec
    threads = usable_threads(cores_for_workers(prepared.target)) // workers if workers else prepared.context.threads
    threads = int(spec.compute.cpus or threads)
    return replace(
        WorkerSetup.of(prepared, max(1, threads)),
        constraints=spec.constraints,
        reference=search.reference,
        kept_off_bench=workers > 0,
        checkpoint_s=spec.budget.checkpoint_s,
        pickled_workload=prepared.pickled_workload,
        registrations=pickled_registrations(),
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
