"""A worker in a process of its own on this machine, so that a trial that crashes does not end the search."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from loky.backend import get_context

from ...core.errors import SearchError, WorkerStartError, WorkloadError
from ...evaluators.evaluator import Context
from ..proposal import Proposal
from ..trials.baseline import UNMEASURED
from ..trials.trial_log import FILE as TRIAL_LOG
from ..trials.worker import Stage
from ..trials.worker_setup import WorkerSetup
from .base import Task
from .crash_report import exit_text, stage_of_death
from .worker_child import SLOW_START, TOO_LONG, Check, Measure, Renew, serve, start_limit_s

T = TypeVar("T")

STARTS = 3
"""Failed starts in a row after which the search gives up."""

KILL_DELAY_S = 30
"""A process ends itself at a trial's time limit; one that has not after so many more seconds is killed."""

KILLED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
"""Exit codes of a process that something else ended."""

POLL_SECONDS = 0.5
"""Seconds between checks that the process lives: its children may hold the pipe open after its death."""


class WorkerProcess:
    """Runs tasks one after the other in one long-lived process, replaced when a task ended it.

    Where a trial fails before any has come to its end, policies may be bad or the set-up is: before it runs another, the process has to
    score the uncompressed model, which every worker that is any use can. So a policy that its runtime refuses ends no search, and a
    metric that cannot open its file does after one trial.

    Args:
        log: file for what the process prints.
        trial_timeout_s: of the study; a trial may have another limit.
    """

    def __init__(self, setup: WorkerSetup, log: Path, trial_timeout_s: float | None = None) -> None:
        self._setup, self._log, self._trial_timeout_s = setup, log, trial_timeout_s
        self._works = False
        self._failed: Proposal | None = None
        self._start()  # takes seconds, so it begins before the first trial is ready

    def run(self, task: Task) -> Generator[Stage, None, None]:
        """The stages of a task, the next one begun when it is asked for; a process that dies is a "failed" stage.

        Raises:
            WorkerStartError: no process could start, or none in which the uncompressed model can be scored.
        """
        self._require_started()
        if self._failed is not None:
            self._require_working(self._failed)
        with closing(self._stages(task)) as stages:
            for stage in stages:
                self._note(task, stage)
                yield stage

    def measured(
        self,
        measure: Callable[[Context], T],
        problem: str = UNMEASURED,
        *,
        folder: Path,
        memory_gb: float | None = None,
    ) -> T:
        """As `Measuring`; what it prints, and the traceback of what it raises, are in a log in `folder`."""
        self._require_started()
        request = Measure(measure, folder, self._trial_timeout_s, memory_gb)
        began = time.monotonic()
        try:
            self._connection.send(request)
            found, failure = self._receive(request.limit_s)
        except (EOFError, OSError):  # the other end is gone, or (TimeoutError is an OSError) it does not answer
            how, limit_s = self._end(), request.limit_s
            is_over = limit_s is not None and time.monotonic() - began > limit_s
            died = f"{TOO_LONG} = {limit_s:g} s" if is_over else stage_of_death(request, None, how).reason
            raise SearchError(f"{problem}: {died}; what it printed is in {folder / TRIAL_LOG}") from None
        if failure is not None:
            raise WorkloadError(f"{problem}: {failure}; its traceback is in {folder / TRIAL_LOG}")
        return found

    def renew(self, setup: WorkerSetup) -> None:
        """Run trials under another setup from now on, with the workload that the process has loaded."""
        self._setup = setup
        if self._is_ready and self._process.is_alive():
            with suppress(OSError):  # it has died just now, and is started again
                self._connection.send(Renew(setup))
            self._is_ready = False

    def _stages(self, task: Task) -> Generator[Stage, None, None]:
        try:
            self._connection.send(task)
            while (stage := self._receive(task.limit_s)) is not None:
                yield stage
                self._connection.send(True)
        except GeneratorExit:
            with suppress(OSError):  # as below
                self._connection.send(False)
        except TimeoutError:
            self._end()
            yield stage_of_death(task, self._trial_timeout_s, None)
        except (EOFError, OSError):  # the other end is gone
            how = self._end()
            yield stage_of_death(task, self._trial_timeout_s, how, was_killed=self._process.exitcode in KILLED)

    def _note(self, task: Task, stage: Stage) -> None:
        """Remember whether the set-up works, and a trial that failed before that was known."""
        if stage.name in ("scored", "recovered", "confirmed") and stage.final:
            self._works, self._failed = True, None
        elif stage.name == "failed" and stage.fault is None and not self._works and isinstance(task, Proposal):
            self._failed = task

    def close(self) -> None:
        """End the process, and its bench with it."""
        with suppress(OSError):  # it may be gone
            self._connection.send(None)
        self._process.join(1)
        self._end()

    def _start(self) -> None:
        context: Any = get_context("loky")  # it does not run the main script again
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._log, os.getpid()))
        self._process.start()
        theirs.close()
        self._connection.send(self._setup)
        self._is_ready = False

    def _require_started(self) -> None:
        problem: str | None = None
        for _ in range(STARTS):
            if not self._process.is_alive():
                self._start()
            if self._is_ready or (problem := self._why_not_started()) is None:
                return
        raise WorkerStartError(
            f"no worker can start, after {STARTS} tries: {problem}; what it printed is in {self._log}"
        )

    def _why_not_started(self) -> str | None:
        limit_s = start_limit_s(self._trial_timeout_s)
        try:
            problem = self._receive(limit_s)
        except TimeoutError:
            self._end()
            return f"its start {SLOW_START} = {limit_s:g} s"
        except (EOFError, OSError):
            return f"its process {self._end()}"
        if problem is not None:
            self._end()
        self._is_ready = problem is None
        return problem

    def _require_working(self, failed: Proposal) -> None:
        """See that the uncompressed model does not fail as a trial did; the second try is in a process that the trial has not touched."""
        problem: str | None = None
        for _ in range(2):
            self._require_started()
            if (problem := self._why_not_working(failed)) is None:
                self._works, self._failed = True, None
                return
            self._end()
        log = failed.folder / TRIAL_LOG
        raise WorkerStartError(
            f"no worker can run trials: the uncompressed model fails there too: {problem}; what it printed is in {log}"
        )

    def _why_not_working(self, failed: Proposal) -> str | None:
        try:
            self._connection.send(Check(failed))
            return self._receive(failed.limit_s)
        except (EOFError, OSError, TimeoutError):
            return stage_of_death(failed, failed.limit_s, self._end()).reason

    def _receive(self, limit_s: float | None) -> Any:
        """What the process sends next.

        Raises:
            EOFError, OSError: it died.
            TimeoutError: it takes much longer than its limit.
        """
        deadline = None if limit_s is None else time.monotonic() + limit_s + KILL_DELAY_S
        while not self._connection.poll():
            wait([self._connection, self._process.sentinel], POLL_SECONDS)
            if self._process.exitcode is not None and not self._connection.poll():
                raise EOFError
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
        return self._connection.recv()

    def _end(self) -> str:
        """Kill the process, if it still runs, and nothing else; returns how it ended."""
        if self._process.exitcode is None:
            os.kill(self._process.pid, signal.SIGKILL)  # loky's processes have no kill()
        self._process.join()
        self._connection.close()
        return exit_text(self._process.exitcode)
