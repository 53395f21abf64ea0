"""Runs a search on this machine, one trial after the other, without Ray."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Protocol

from ...core.interrupts import Interrupts
from ..driver import Search
from ..trials.artifacts_folder import storing
from ..trials.worker import Stage, Worker
from .base import LOG, Task, Work, raise_fault, run_trials, worker_setup
from .worker_process import WorkerProcess


class _TrialWorker(Protocol):
    def run(self, task: Task) -> Generator[Stage, None, None]: ...

    def close(self) -> None: ...


class _InProcess:
    """A worker in this process, for debugging and tests: a debugger stops in the trial, and no process has to start."""

    def __init__(self, search: Search) -> None:
        self._worker = Worker(worker_setup(search, 0), search.prepared.context.workload)

    def run(self, task: Task) -> Generator[Stage, None, None]:
        yield from task.stages(self._worker)

    def close(self) -> None:
        self._worker.close()


class LocalRunner:
    """Runs tasks one after the other, in a process of their own or in this one."""

    slots = 1

    def __init__(self, search: Search, isolated: bool) -> None:
        self._worker, self._folder = _worker_of(search, isolated), search.folder

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


def _worker_of(search: Search, isolated: bool) -> _TrialWorker:
    if not isolated:
        return _InProcess(search)
    return WorkerProcess(worker_setup(search, 0), search.folder / LOG, search.spec.budget.trial_timeout_s)
