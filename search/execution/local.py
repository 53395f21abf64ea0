"""Runs a search on this machine, one trial after the other, without Ray."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from ...core.interrupts import Interrupts
from ..driver import Search
from ..trials.artifacts_folder import storing
from ..trials.prepared_study import PreparedStudy
from ..trials.worker import Stage, Worker
from .base import LOG, Task, Work, measuring_setup, raise_fault, run_trials, worker_setup
from .worker_process import WorkerProcess


class _InProcess:
    """A worker in this process, for debugging and tests: a debugger stops in the trial, and no process has to start."""

    def __init__(self, search: Search) -> None:
        self._worker = Worker(worker_setup(search, 0), search.prepared.context.workload)

    def run(self, task: Task) -> Generator[Stage, None, None]:
        yield from task.stages(self._worker)

    def close(self) -> None:
        self._worker.close()


class LocalRunner:
    """Runs tasks one after the other, in a process of their own or in this one.

    Args:
        isolated: whether in one of their own.
        process: that has measured the uncompressed model, and goes on with trials; another one is started without.
    """

    slots = 1

    def __init__(self, search: Search, isolated: bool, process: WorkerProcess | None = None) -> None:
        self._worker = _worker_of(search, process) if isolated else _InProcess(search)
        self._folder = search.folder

    def run(self, work: Work, interrupts: Interrupts) -> None:
        """As `Runner.run`."""
        with storing(self._folder):
            while task := work.propose():
                self._run_task(work, task, interrupts)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _run_task(self, work: Work, task: Task, interrupts: Interrupts) -> None:
        with closing(self._worker.run(task)) as stages:
            for stage in stages:
                interrupts.check()
                raise_fault(stage)
                if stage.fault == "lost":
                    work.lose(task.number, stage.reason or "")
                if stage.fault is not None:
                    return  # else tried again by the next run
                goes_on = work.advance(task.number, stage)
                interrupts.check()
                if not goes_on:
                    return
        work.finish(task.number)


def run_local(search: Search, isolated: bool = False) -> None:
    """Run trials one after the other until the budget is spent: for debugging and tests; `run_search` is what users run.

    On KeyboardInterrupt the trial at hand is closed as interrupted, and the interrupt goes on.

    Args:
        isolated: run them in a process of their own, which may crash, exit or hang; otherwise they run in this one, without a
            time limit, and what ends it ends the search.

    Raises:
        ArtifactsError: the artifacts folder cannot be written to.
        WorkerStartError: the process cannot start.
    """
    run_trials(search, LocalRunner(search, isolated))


def measuring_process(prepared: PreparedStudy, folder: Path) -> WorkerProcess:
    """A process for measuring the uncompressed model, and for trials after it.

    Args:
        folder: of the study's files at work.
    """
    return WorkerProcess(measuring_setup(prepared), folder / LOG, prepared.spec.budget.trial_timeout_s)


def _worker_of(search: Search, process: WorkerProcess | None) -> WorkerProcess:
    setup = worker_setup(search, 0)
    if process is None:
        return WorkerProcess(setup, search.folder / LOG, search.spec.budget.trial_timeout_s)
    process.renew(setup)
    return process
