"""Runs a search in this process, without Ray: for tests, debugging and small machines."""

from __future__ import annotations

from ..interrupts import Interrupts
from .driver import Search
from .worker import Worker


def run_local(search: Search) -> None:
    """Run trials one after the other until the budget is spent.

    On KeyboardInterrupt the trial at hand is closed as interrupted, and the interrupt goes on.
    """
    worker = Worker(search.worker_setup(0), search.problem.context.workload)
    try:
        search.try_uncompressed()
        with Interrupts() as interrupts:
            while proposal := search.propose():
                for stage in worker.run(proposal.policy, proposal.folder, proposal.recovered):
                    search.record(proposal.number, stage)
                    interrupts.check()
                    verdict = search.verdict(proposal.number, stage)
                    if verdict is not None and not verdict.is_promising:
                        search.stop(proposal.number, stage, verdict)
                        break
                else:
                    search.finish(proposal.number)
    finally:
        search.interrupt()
        worker.close()
