"""Starts processes that train a model together, and watches them: what the first one makes is handed on, and one that fails ends all.

They are processes of loky's, which do not run the main script again, in a process group of `torch.distributed`; Ray Train would start
the same group in actors of its own, which a search without Ray does not have and a trial's time and memory limits do not reach. The group meets in
a file, so that no port is opened but by NCCL or gloo.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import cloudpickle
import torch
from loky.backend import get_context
from torch import nn

from ..core.errors import CompressionError, describe_exception
from ..core.interrupts import end_with, ignore_interrupts

MOMENT_S = 0.1
"""Seconds from the first failure within which a process that was killed is gone; those that fail of it are not."""

Made = Iterator[tuple[nn.Module | None, float]]
"""Models with the epochs that they were trained for; None for the model whenever the training was saved."""

LONGEST = timedelta(days=1)
"""How long ranks wait for one another: the first is at a rung's scoring meanwhile. One that is dead is noticed at once."""

LEAVING_S = 10.0
"""Seconds for all ranks to leave their group at the end; one that has not is killed."""

POLL_S = 0.5
"""Seconds between looks at processes that send nothing."""


class _Task(NamedTuple):
    """What a process is started with.

    Attributes:
        device: the type of device; on "cuda" each rank has the GPU of its number.
        work: a pickled function that gives `Made`.
    """

    rank: int
    ranks: int
    device: str
    folder: Path
    work: bytes


class RankProcesses:
    """Runs the same work in several processes, each a rank of one process group.

    Args:
        work: a function that can be pickled; all ranks' results are the first one's.
        device: a type of device, of which each rank has one.
    """

    def __init__(self, work: Callable[[], Made], count: int, device: str) -> None:
        self._work, self._count, self._device = cloudpickle.dumps(work), count, device

    def run(self) -> Made:
        """What the first rank makes; it goes on when the next is asked for. To stop all, stop iterating.

        Raises:
            CompressionError: a rank failed, or its process ended.
        """
        with tempfile.TemporaryDirectory(prefix="slimfront-ranks-") as folder:
            self._connections: list[Connection] = []
            self._processes: list[Any] = []
            try:
                self._start(Path(folder))
                while (made := self._receive()) is not None:
                    yield made
                    self._go_on(self._connections if made[0] is not None else self._connections[:1])
                self._wait()
            finally:
                self._end()

    def _start(self, folder: Path) -> None:
        context: Any = get_context("loky")
        for rank in range(self._count):
            own, theirs = context.Pipe()
            task = _Task(rank, self._count, self._device, folder, self._work)
            process = context.Process(target=_serve, args=(theirs, task, os.getpid()))
            process.start()
            theirs.close()
            self._connections.append(own)
            self._processes.append(process)

    def _go_on(self, connections: Sequence[Connection]) -> None:
        for connection in connections:
            with suppress(OSError):  # of a process that has ended, which `_receive` says
                connection.send(True)

    def _wait(self) -> None:
        """Give processes that have nothing left to do time to leave their group."""
        deadline = time.monotonic() + LEAVING_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))

    def _receive(self) -> tuple[nn.Module | None, float] | None:
        """What the first rank sends next; None at its end.

        Raises:
            CompressionError: as above.
        """
        while True:
            wait([*self._connections, *(process.sentinel for process in self._processes)], POLL_S)
            if (problem := self._problem(messages := self._messages())) is not None:
                rank, reason = problem
                raise CompressionError(f"process {rank + 1} of the {self._count} that train together failed: {reason}")
            if 0 in messages:  # what a process of this one's made, over a pipe that nobody else has
                return None if messages[0] is None else pickle.loads(messages[0])

    def _problem(self, messages: dict[int, Any]) -> tuple[int, str] | None:
        """The rank that failed first, and why: all others lose their connection to it, and fail too."""
        failed = _failures(messages)
        if failed:  # perhaps because a process died, which says nothing and is gone by now
            wait([process.sentinel for process in self._processes], MOMENT_S)
        codes = {rank: process.exitcode for rank, process in enumerate(self._processes)}
        if any(codes.values()):  # those that failed of themselves said so before they ended
            failed |= _failures(self._messages())
        if dead := [rank for rank, code in codes.items() if code and rank not in failed]:
            return dead[0], f"it ended with exit code {codes[dead[0]]}"
        first = min(failed, key=lambda rank: failed[rank].at, default=None)
        return None if first is None else (first, failed[first].reason)

    def _messages(self) -> dict[int, Any]:
        found = {}
        for rank, connection in enumerate(self._connections):
            with suppress(EOFError, OSError):  # of a process that has ended
                if connection.poll():
                    found[rank] = connection.recv()
        return found

    def _end(self) -> None:
        for process, connection in zip(self._processes, self._connections, strict=True):
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)  # loky's processes have no kill()
            connection.close()
        for process in self._processes:
            process.join()


class _Failure(NamedTuple):
    """Why a rank failed, and when, by the clock that processes of a machine share."""

    reason: str
    at: float


def _failures(messages: dict[int, Any]) -> dict[int, _Failure]:
    return {rank: found for rank, found in messages.items() if isinstance(found, _Failure)}


def _serve(connection: Connection, task: _Task, parent: int) -> None:
    ignore_interrupts()  # Ctrl-C is the parent's to handle; it ends this process
    Thread(target=end_with, args=(parent,), daemon=True).start()
    try:
        _join(task)
        for model, epochs in pickle.loads(task.work)():
            if task.rank == 0:
                # A class of the main script goes by value, as it came.
                connection.send(cloudpickle.dumps((model, epochs)))
            if task.rank == 0 or model is not None:
                # Of a model all wait here, and not for one another in a step: within a step a rank has a turn of its GPU, which a timing
                # of that very model may wait for.
                connection.recv()
        torch.distributed.destroy_process_group()
        if task.rank == 0:
            connection.send(None)
    except BaseException as error:  # the user's code may raise anything
        failure = _Failure(describe_exception(error), time.monotonic())
        traceback.print_exc()
        connection.send(failure)


def own_device(device: torch.device) -> torch.device:
    """Where this rank computes what a workload has on a device: on the GPU of its own, if that is one."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _join(task: _Task) -> None:
    on_gpu = task.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(task.rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // task.ranks))
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=(task.folder / "meeting").as_uri(),
        rank=task.rank,
        world_size=task.ranks,
        timeout=LONGEST,
    )
