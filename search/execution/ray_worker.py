"""A worker in a process of a Ray node: what runs there."""

from __future__ import annotations

import time
from dataclasses import replace

from ...core.errors import describe_exception
from ...core.interrupts import ignore_interrupts
from ...core.threads import usable_threads
from ...hardware_profiles.bench.bench import cores_for_workers
from ...workloads.load import settle_in
from ..proposals import Proposal
from ..trials.worker import Stage, Worker, WorkerSetup
from .crash_report import crash_reported


class RayWorker:
    """Holds model, data and bench from its start on, and runs one trial after the other; a call is one stage."""

    def start(self, setup: WorkerSetup, sharing: int) -> str | None:
        """Make everything ready for the first trial; returns why that cannot be.

        Args:
            sharing: how many workers share this node's cores.
        """
        ignore_interrupts()  # Ctrl-C is the driver's to handle
        try:
            threads = usable_threads(cores_for_workers(setup.target)) // sharing
            settle_in(setup.base_folder)  # Ray starts its processes in a folder of its own
            self._worker = Worker(replace(setup, threads=max(1, threads)))
            self._worker.warm_up()
        except BaseException as error:  # the user's code may raise anything
            return describe_exception(error)
        return None

    def begin(self, proposal: Proposal) -> Stage | None:
        """The first stage of a trial; one that had not come to its end is given up."""
        self._proposal, self._left = proposal, proposal.limit_s
        self._stages = self._worker.run(proposal.policy, proposal.folder, proposal.recovered)
        return self.proceed()

    def proceed(self) -> Stage | None:
        """The next stage of the trial; None after the last."""
        began = time.monotonic()
        with crash_reported(self._proposal.folder, self._left):
            stage = next(self._stages, None)
        if self._left is not None:
            self._left -= time.monotonic() - began
        return stage

    def ping(self) -> None:
        """Nothing: whether there is an answer is the answer."""

    def close(self) -> None:
        """End the bench's process."""
        self._worker.close()
