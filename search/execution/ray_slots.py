"""The workers of a cluster: one for each slot, started where there is room and replaced when they die."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from ..cluster.cluster import ray  # before anything else of Ray

from ray.exceptions import RayError  # isort: skip

from ...core.texts import one_line
from ...studies.wording import count_text
from ..cluster.nodes import Node, alive_nodes, driver_node
from ..driver import Search
from .base import Task, worker_setup
from .ray_worker import RayWorker, Ready
from .shipment import Shipment, left_behind, sent_with, unpack
from .worker_process import STARTS

LOOK_SECONDS = 1.0
"""The least seconds between two looks at which nodes there are."""


COLLECT_SECONDS = 30
"""The seconds that a node has to send what a dead worker left behind; it starts a process for that."""

_DETAIL = "exit detail: "
_ADVICE = re.compile(r"(There are some potential root causes|Some common causes).*")
"""What follows the reason of a worker's death in Ray's messages."""


class Slot:
    """A worker on a node, and the task that it runs: a trial, mostly.

    Args:
        setup, shipment: in Ray's object store; the latter None on the driver's node.
        sharing: how many workers share the node's cores.
        resources: what it takes, as Ray calls it.

    Attributes:
        answer: what it was asked for last; None while it waits for a task.
        is_far: whether it cannot read the driver's files.
        task: None where it has none.
        began: `time.monotonic()` when it was started.
        ready: what it said when it had everything that trials need; None until then.
        busy_s: seconds that its trials took of the time since it was ready.
    """

    def __init__(self, node: Node, setup: Any, shipment: Any, sharing: int, resources: Mapping[str, float]) -> None:
        self.node, self.is_far = node, shipment is not None
        self._worker: Any = (
            ray.remote(RayWorker)
            .options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=node.affinity,
            )
            .remote()
        )
        self.answer: Any = self._worker.start.remote(setup, sharing, shipment)
        self.task: Task | None = None
        self.ready: Ready | None = None
        self.busy_s = 0.0
        self.began = time.monotonic()

    def begin(self, task: Task) -> None:
        """Have it run a task to its first stage."""
        files = sent_with(task) if self.is_far else ({}, {})
        self.task, self.answer = task, self._worker.begin.remote(task, *files)

    def proceed(self) -> None:
        """Have it run its task to the next stage."""
        self.answer = self._worker.proceed.remote()

    def rest(self) -> None:
        """Note that its task has ended."""
        self.task = self.answer = None

    def probe(self) -> None:
        """Find out whether it lives: Ray knows only that it does not answer."""
        self.answer = self._worker.ping.remote()

    def close(self) -> Any:
        """Have it end its bench; returns what answers when that is done."""
        return self._worker.close.remote()

    def collect(self) -> None:
        """After its process's death: fetch what its trial wrote for people, where that is on another node."""
        if self.task is None or self.ready is None or self.ready.folder is None:
            return
        there = ray.remote(left_behind).options(num_cpus=0, scheduling_strategy=self.node.affinity)
        with suppress(RayError):  # the node may be gone since; the trial's end is known without
            unpack(ray.get(there.remote(self.ready.folder), timeout=COLLECT_SECONDS), self.task.folder)

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

    def __init__(self, search: Search, most: int, resources: Mapping[str, float]) -> None:
        self._search, self._most, self._resources = search, most, resources
        self._setup, self._here = ray.put(worker_setup(search, 1)), driver_node()
        self._slots: list[Slot] = []
        self._nodes: dict[str, Node] = {}
        self._taken: Counter[str] = Counter()
        self._free: Counter[str] = Counter()
        self._looked = float("-inf")
        self._failures: Counter[str] = Counter()
        self.left_out: dict[str, Node] = {}

    @property
    def idle(self) -> list[Slot]:
        """Those that wait for a task."""
        return [slot for slot in self._slots if slot.answer is None]

    def starting_since(self, seconds: float) -> list[Slot]:
        """Those that have been starting for longer than so many seconds."""
        return [slot for slot in self._slots if slot.ready is None and time.monotonic() - slot.began > seconds]

    @property
    def running(self) -> list[Slot]:
        """Those that have a task."""
        return [slot for slot in self._slots if slot.task is not None]

    @property
    def room(self) -> int:
        """How many workers there can be now."""
        self._look()
        return min(self._most, sum(node.slots for node in self.usable))

    @property
    def usable(self) -> list[Node]:
        """The nodes that workers run on or could."""
        return [node for node in self._nodes.values() if node.slots and node.id not in self.left_out]

    @property
    def waiting(self) -> int:
        """How many more workers there would be if nothing else ran on the nodes."""
        held = sum(max(0, node.slots - self._taken[node.id] - self._free[node.id]) for node in self.usable)
        return min(held, self._most - len(self._slots))

    def waiting_text(self) -> str:
        """Which workers wait for what other Ray jobs hold, and what to do about it."""
        names = [node.name for node in self.usable if node.slots > self._taken[node.id] + self._free[node.id]]
        number = len(self._slots)
        advice = f"--workers {number} asks for no more than there is now" if number else "until then no trial runs"
        return (
            f"{count_text(self.waiting, 'more worker')} could start where other Ray jobs hold the {self._needs}: on node "
            f"{', '.join(names)}; they start when that is free ('ray status' lists what is taken); {advice}"
        )

    def too_small_text(self) -> str:
        """That no node can take a worker, whatever runs on it."""
        return f"no node of the Ray cluster has the {self._needs} that one worker takes (compute: in the study file)"

    @property
    def _needs(self) -> str:
        return " and ".join(f"{amount:g} {name}" for name, amount in self._resources.items() if amount)

    def fill(self) -> None:
        """Start workers where there is room, on the node with most of it first."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._look()
        for slot in [slot for slot in self.idle if slot.node.id not in self._nodes]:
            self.drop(slot)
        self._taken = Counter(slot.node.id for slot in self._slots)
        while len(self._slots) < self._most:
            node = max(self.usable, key=self._room_on, default=None)
            if node is None or self._room_on(node) <= 0:
                return
            shipment = None if node.id == self._here else self._shipment
            self._slots.append(Slot(node, self._setup, shipment, min(node.slots, self._most), self._resources))
            self._taken[node.id] += 1
            self._free[node.id] -= 1

    def _room_on(self, node: Node) -> int:
        """How many workers can start on a node now: as long as another Ray job holds its processors, none are queued for them."""
        return min(node.slots - self._taken[node.id], self._free[node.id])

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
        """Do without a worker; another one is started where there is room. Its node may have been left out, and it with it, already."""
        if slot not in self._slots:
            return
        slot.kill()
        self._slots.remove(slot)
        self._looked = float("-inf")

    def started(self, slot: Slot, ready: Ready) -> None:
        """Note that a worker is ready for trials."""
        slot.ready, slot.answer = ready, None

    def worked(self, node: Node) -> None:
        """Note that a trial has come to its end on a node."""
        self._failures[node.id] = 0

    def failed(self, slot: Slot) -> bool:
        """Drop a worker that cannot start or run any trial; whether its node is to be left out now, after `STARTS` in a row."""
        node = slot.node
        self.drop(slot)
        self._failures[node.id] += 1
        return self._failures[node.id] >= STARTS and node.id not in self.left_out

    def leave_out(self, node: Node) -> None:
        """Start no other worker on a node, and give up those that have no trial there."""
        self.left_out[node.id] = node
        for slot in [slot for slot in self._slots if slot.node == node and slot.task is None]:
            self.drop(slot)

    def has_left(self, node: Node, error: RayError) -> bool:
        """Whether a worker died because its node did, by what Ray says of it."""
        self._look()
        return node.id not in self._nodes or "node has died" in str(error)

    def close(self) -> None:
        """End the workers that do nothing, with their benches; the others end with the connection."""
        closing = [slot.close() for slot in self.idle]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=1)

    @cached_property
    def _shipment(self) -> Any:
        return ray.put(Shipment.of(self._search))

    def _look(self) -> None:
        self._nodes, self._looked = alive_nodes(self._resources), time.monotonic()
        self._free = Counter({node.id: node.free for node in self._nodes.values()})


def how_it_died(error: RayError) -> str:
    """What Ray knows of a worker's death, without what it says on actors and their ids and on what may cause such a death."""
    lines = str(error).splitlines()
    detail = next((line for line in lines if _DETAIL in line), lines[-1] if lines else "Ray knows no more")
    known = _ADVICE.sub("", detail.rpartition(_DETAIL)[2])
    return f"died: {one_line(known, 400).rstrip('.')}"
