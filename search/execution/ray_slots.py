"""The workers of a cluster: one for each slot, started where there is room and replaced when they die."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..cluster.cluster import ray  # before anything else of Ray

from ray.exceptions import RayError  # isort: skip

from ...core.texts import one_line
from ..cluster.nodes import Node, alive_nodes
from ..proposals import Proposal
from ..trials.worker import WorkerSetup
from .ray_worker import RayWorker
from .worker_process import STARTS

LOOK_SECONDS = 1.0
"""The least seconds between two looks at which nodes there are."""


class Slot:
    """A worker on a node, and the trial that it runs.

    Attributes:
        answer: what it was asked for last; None while it waits for a trial.
        proposal: the trial; None where it has none.
        is_started: whether it has everything ready for trials.
        is_probed: whether its last answer is lost and it was asked whether it still lives.
    """

    def __init__(self, node: Node, setup: Any, sharing: int, resources: Mapping[str, float]) -> None:
        self.node = node
        others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        self._worker: Any = (
            ray.remote(RayWorker)
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                resources=others,
                scheduling_strategy=node.affinity,
            )
            .remote()
        )
        self.answer: Any = self._worker.start.remote(setup, sharing)
        self.proposal: Proposal | None = None
        self.is_started = self.is_probed = False

    def begin(self, proposal: Proposal) -> None:
        """Have it run a trial to its first stage."""
        self.proposal, self.answer = proposal, self._worker.begin.remote(proposal)

    def proceed(self) -> None:
        """Have it run its trial to the next stage."""
        self.answer = self._worker.proceed.remote()

    def rest(self) -> None:
        """Note that its trial has ended."""
        self.proposal = self.answer = None

    def probe(self) -> None:
        """Find out whether it lives: Ray knows only that it does not answer."""
        self.is_probed, self.answer = True, self._worker.ping.remote()

    def close(self) -> Any:
        """Have it end its bench; returns what answers when that is done."""
        return self._worker.close.remote()

    def kill(self) -> None:
        """End its process."""
        ray.kill(self._worker)


class Slots:
    """All workers of a search.

    Args:
        most: how many there may be.
        resources: what one worker takes, as Ray calls it.

    Attributes:
        left_out: id -> node on which no worker can start.
    """

    def __init__(self, setup: WorkerSetup, most: int, resources: Mapping[str, float]) -> None:
        self._setup, self._most, self._resources = ray.put(setup), most, resources
        self._slots: list[Slot] = []
        self._nodes: dict[str, Node] = {}
        self._looked = float("-inf")
        self._failed_starts: Counter[str] = Counter()
        self.left_out: dict[str, Node] = {}

    @property
    def idle(self) -> list[Slot]:
        """Those that wait for a trial."""
        return [slot for slot in self._slots if slot.answer is None]

    @property
    def running(self) -> list[Slot]:
        """Those that have a trial."""
        return [slot for slot in self._slots if slot.proposal is not None]

    @property
    def usable(self) -> list[Node]:
        """The nodes that workers run on or could."""
        return [node for node in self._nodes.values() if node.slots and node.id not in self.left_out]

    def fill(self) -> None:
        """Start workers where there is room, on the node with most of it first."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._look()
        taken = Counter(slot.node.id for slot in self._slots)
        while len(self._slots) < self._most:
            node = max(self.usable, key=lambda node: node.slots - taken[node.id], default=None)
            if node is None or taken[node.id] >= node.slots:
                return
            self._slots.append(Slot(node, self._setup, min(node.slots, self._most), self._resources))
            taken[node.id] += 1

    def answered(self, patience_s: float) -> list[Slot]:
        """Those whose answer has come; nothing where none does within so many seconds."""
        waiting = {slot.answer: slot for slot in self._slots if slot.answer is not None}
        if not waiting:
            time.sleep(patience_s)
            return []
        ray.wait(list(waiting), timeout=patience_s)
        ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        return [waiting[answer] for answer in ready]

    def drop(self, slot: Slot) -> None:
        """Do without a worker; another one is started where there is room."""
        slot.kill()
        self._slots.remove(slot)
        self._looked = float("-inf")

    def started(self, slot: Slot) -> None:
        """Note that a worker is ready for trials."""
        slot.is_started, slot.answer = True, None
        self._failed_starts[slot.node.id] = 0

    def failed_to_start(self, slot: Slot) -> bool:
        """Drop a worker that cannot start; whether its node is left out now, after so many in a row."""
        node = slot.node
        self.drop(slot)
        self._failed_starts[node.id] += 1
        if self._failed_starts[node.id] < STARTS or node.id in self.left_out:
            return False
        self.left_out[node.id] = node
        for other in [other for other in self._slots if other.node == node and not other.is_started]:
            self.drop(other)
        return True

    def has_left(self, node: Node, error: RayError) -> bool:
        """Whether a worker died because its node did, by what Ray says of it."""
        self._look()
        return node.id not in self._nodes or "node has died" in str(error)

    def close(self) -> None:
        """End the workers that do nothing, with their benches; the others end with the connection."""
        closing = [slot.close() for slot in self.idle]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=1)

    def _look(self) -> None:
        self._nodes, self._looked = alive_nodes(self._resources), time.monotonic()


def how_it_died(error: RayError) -> str:
    """What Ray knows of a worker's death, in its own words without those on actors and their ids."""
    lines = str(error).splitlines()
    detail = next((line for line in lines if "exit detail" in line), lines[-1] if lines else "Ray knows no more")
    return f"died: {one_line(detail, 400)}"
