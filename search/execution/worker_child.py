"""What runs in the process of a `WorkerProcess`. Imports nothing that takes long or prints: the log is opened first."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from ...core.errors import describe_exception
from ...core.interrupts import end_with, ignore_interrupts
from ...core.machine.garbage import collect_seldom

if TYPE_CHECKING:
    from ...evaluators.evaluator import Context
    from ..proposal import Proposal
    from ..trials.worker import Worker
    from ..trials.worker_setup import WorkerSetup
    from .base import Task


TRIALS_IN_A_MEASUREMENT = 5
"""A measurement may take as long as so many trials: it lowers, times and scores each of up to four free deployments."""

TOO_LONG = f"took longer than {TRIALS_IN_A_MEASUREMENT} x trial_timeout_s"

LEAST_START_S = 600.0
"""Seconds that loading the workload may take, whatever `trial_timeout_s` is: its data may have to be fetched."""

SLOW_START = f"took longer than the larger of {LEAST_START_S:g} s and {TRIALS_IN_A_MEASUREMENT} x trial_timeout_s"


def start_limit_s(trial_timeout_s: float | None) -> float | None:
    """Seconds that loading the workload in the driver, or the start of a worker, may take, both of which run the user's code; None without."""
    return None if trial_timeout_s is None else max(LEAST_START_S, TRIALS_IN_A_MEASUREMENT * trial_timeout_s)


@dataclass(frozen=True)
class Check:
    """Asks whether what a trial that failed needed of the user's code works with the uncompressed model."""

    failed: Proposal


@dataclass(frozen=True)
class Measure:
    """Asks for what `measure` returns of the workload on its target, before there is a reference.

    Attributes:
        folder: for its log. memory_gb: as of a `Proposal`.
        scoring_limit_s: the study's `trial_timeout_s`.
    """

    measure: Callable[[Context], Any]
    folder: Path
    scoring_limit_s: float | None
    memory_gb: float | None

    what = "the measurement"

    @property
    def limit_s(self) -> float | None:
        """Seconds after which it is given up; None without."""
        return None if self.scoring_limit_s is None else TRIALS_IN_A_MEASUREMENT * self.scoring_limit_s


@dataclass(frozen=True)
class Renew:
    """Has the worker go on under another setup with the workload that it has; answered as a start is."""

    setup: WorkerSetup


def serve(connection: Connection, log: Path, driver: int) -> None:
    """Answer a `WorkerSetup` with None or why no worker could start, each task with its stages and None, each `Check` with None or
    what failed, each `Measure` with what was found and what failed, one of which is None, and each `Renew` with None.

    After a stage it waits to hear whether the next one is wanted.

    Args:
        driver: the process that started this one, and may have been killed since.
    """
    collect_seldom()
    ignore_interrupts()  # Ctrl-C is the driver's to handle; it ends this process
    _print_to(log)
    try:
        worker = _started(connection, driver)
    except BaseException as error:  # the user's code may raise anything
        traceback.print_exc()
        connection.send(describe_exception(error))
        return
    connection.send(None)
    while (request := connection.recv()) is not None:
        if isinstance(request, Check):
            connection.send(_failure(worker, request.failed))
        elif isinstance(request, Measure):
            connection.send(_measured(worker, request))
        elif isinstance(request, Renew):
            worker = _renewed(worker, request.setup)
            connection.send(None)
        else:
            _run(worker, request, connection)
    worker.close()


def _started(connection: Connection, driver: int) -> Worker:
    from ...workloads.load import settle_in
    from ..trials.worker import Worker

    Thread(target=end_with, args=(driver,), daemon=True).start()
    setup = connection.recv()
    settle_in(setup.base_folder)
    worker = Worker(setup)
    worker.warm_up()
    return worker


def _renewed(worker: Worker, setup: WorkerSetup) -> Worker:
    from ..trials.worker import Worker

    renewed = Worker(setup, worker.workload)
    renewed.warm_up()
    return renewed


def _measured(worker: Worker, request: Measure) -> tuple[Any, str | None]:
    from ...core.time_limit import time_limited
    from ..trials.trial_log import log_traceback
    from .crash_report import crash_reported

    # Not the time limit of `crash_reported`: scoring has one of its own within, and faulthandler knows but one at a time.
    with crash_reported(request.folder, None, request.memory_gb):
        try:
            with time_limited(request.limit_s, TOO_LONG):
                return worker.measured(request.measure, request.scoring_limit_s), None
        except BaseException as error:  # as above
            log_traceback(request.folder, error)
            return None, describe_exception(error)


def _failure(worker: Worker, failed: Proposal) -> str | None:
    """What fails with the uncompressed model in this process; None where nothing does."""
    from .crash_report import crash_reported

    with crash_reported(failed.folder, failed.limit_s, failed.memory_gb):
        try:
            worker.check_set_up(failed.policy)
        except BaseException as error:  # as above
            traceback.print_exc()
            return describe_exception(error)
    return None


def _run(worker: Worker, task: Task, connection: Connection) -> None:
    from .crash_report import crash_reported

    stages, spent_s = task.stages(worker), 0.0
    while True:
        began = time.monotonic()
        with crash_reported(task.folder, task.left_s(spent_s), task.memory_gb):
            stage = next(stages, None)
        spent_s += time.monotonic() - began
        connection.send(stage)
        if stage is None or not connection.recv():
            return


def _print_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
