"""Runs a search on this machine, one trial after the other, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Protocol

from ...core.errors import ArtifactsError, WorkerStartError
from ...core.interrupts import Interrupts
from ..driver import Proposal, Search
from ..trials.artifacts_folder import storing
from ..trials.worker import Stage, Worker
from .worker_process import WorkerProcess

LOG = "workers.log"
"""What workers print, in the study's artifacts folder."""


class _Runner(Protocol):
    def run(self, proposal: Proposal) -> Iterator[Stage]: ...

    def close(self) -> None: ...


class _InProcess:
    """A worker in this process: for debugging, and for workloads that no other process could load."""

    def __init__(self, search: Search) -> None:
        self._worker = Worker(search.worker_setup(0), search.prepared.context.workload)
        self.close = self._worker.close

    def run(self, proposal: Proposal) -> Iterator[Stage]:
        return self._worker.run(proposal.policy, proposal.folder, proposal.recovered)


def run_local(search: Search, isolated: bool = False) -> None:
    """Run trials one after the other until the budget is spent.

    On KeyboardInterrupt the trial at hand is closed as interrupted, and the interrupt goes on.

    Args:
        isolated: run them in a process of their own, which may crash, exit or hang; otherwise they run in this one, without a
            time limit, and what ends it ends the search.

    Raises:
        ArtifactsError: the artifacts folder cannot be written to.
        WorkerStartError: the process cannot start.
    """
    log, limit = search.folder / LOG, search.spec.budget.trial_timeout_s
    runner = WorkerProcess(search.worker_setup(0), log, limit) if isolated else _InProcess(search)
    try:
        with storing(search.folder), Interrupts() as interrupts:
            search.try_uncompressed()
            while proposal := search.propose():
                _run_trial(search, runner, proposal, interrupts)
    finally:
        try:
            search.interrupt()
        finally:
            runner.close()


def _run_trial(search: Search, runner: _Runner, proposal: Proposal, interrupts: Interrupts) -> None:
    with closing(runner.run(proposal)) as stages:  # type: ignore[type-var]
        for stage in stages:
            interrupts.check()
            raise_fault(stage)
            if stage.fault is not None:
                return  # tried again by the next run
            search.record(proposal.number, stage)
            interrupts.check()
            verdict = search.verdict(proposal.number, stage)
            if verdict is not None and not verdict.is_promising:
                search.stop(proposal.number, stage, verdict)
                return
    search.finish(proposal.number)


def raise_fault(stage: Stage) -> None:
    """Raise what no other trial would fare better with.

    Raises:
        ArtifactsError: the trial's files could not be written.
        WorkerStartError: no worker could start.
    """
    if stage.fault == "storage":
        raise ArtifactsError(stage.reason)
    if stage.fault == "start":
        raise WorkerStartError(f"no worker can start: {stage.reason}")
