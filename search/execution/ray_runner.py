"""Runs a search over Ray: long-lived workers take trials one stage at a time; the driver alone writes."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

from ..cluster.cluster import LOG, connect, is_cluster_named, ray  # before anything else of Ray

from ray.exceptions import ActorUnavailableError, ObjectLostError, RayError, RayTaskError  # isort: skip

from ...core.errors import WorkerStartError, describe_exception
from ...core.interrupts import Interrupts
from ...core.threads import usable_threads
from ...core.validation import MAX_COUNT
from ...hardware_profiles.bench.bench import cores_for_workers
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.profiling.fingerprint import versions
from ...studies.study_file.spec import StudySpec
from ..cluster.nodes import Node
from ..cluster.study_folder import runtime_env
from ..driver import Search
from ..proposal import Proposal
from ..trials.artifacts_folder import storing
from ..trials.trial_log import append
from ..trials.worker import Stage
from .base import Task, Work, raise_fault
from .crash_report import stage_of_death
from .ray_slots import Slot, Slots, how_it_died
from .ray_worker import Answer, Ready
from .resources import worker_resources
from .shipment import delivered, unpack
from .shortages import Shortages
from .worker_child import SLOW_START, start_limit_s

POLL_SECONDS = 0.5
"""Seconds between looks at interrupts, nodes and the budget while nobody answers."""


def join(spec: StudySpec, artifacts: Path, cpus: int = 1) -> None:
    """Join the cluster that RAY_ADDRESS names, with a copy of the study file's folder on its nodes, or start Ray here.

    Args:
        artifacts: of the study.
        cpus: that a Ray which is started here offers.

    Raises:
        UserError: the cluster cannot be joined, or the folder is too large.
    """
    environment = runtime_env(spec.base_folder, artifacts.parent) if is_cluster_named() else None
    connect(cpus, artifacts / LOG, environment)


def cpus_here(spec: StudySpec, target: Target, workers: int | Literal["auto"]) -> int:
    """How many processors a Ray that is started here offers: as many as its workers take, or there are for "auto"."""
    here, each = usable_threads(cores_for_workers(target)), spec.compute.cpus or 1
    return math.ceil(max(here, each) if workers == "auto" else workers * each)


class RayRunner:
    """Runs trials in workers on the nodes of the cluster that RAY_ADDRESS names, or of this machine, where Ray is started then.

    Args:
        workers: the most there may be, or "auto"; as many run as nodes have room for, and nodes may come and go.
    """

    def __init__(self, search: Search, workers: int | Literal["auto"]) -> None:
        self._search = search
        self._workers: int | Literal["auto"] = workers
        self._most = MAX_COUNT if workers == "auto" else workers
        self._slots: Slots | None = None

    @property
    def slots(self) -> int:
        """As `Runner.slots`; joins the cluster."""
        return max(1, self._joined.room)

    def run(self, work: Work, interrupts: Interrupts) -> None:
        """As `Runner.run`.

        Raises:
            SearchError: the cluster has had no room for a worker for `shortages.PATIENCE_SECONDS`.
        """
        self._work, slots = work, self._joined
        self._shortages = Shortages(self._search.remarks.cluster)
        with storing(self._search.folder):
            while slots.running or not work.is_over:
                interrupts.check()
                self._hand_out(slots)
                for slot in slots.answered(POLL_SECONDS):
                    self._take(slots, slot)
                self._give_up_slow_starts(slots)

    @property
    def _joined(self) -> Slots:
        """The slots of the cluster, which is joined once."""
        if self._slots is None:
            search = self._search
            join(search.spec, search.folder, cpus_here(search.spec, search.prepared.target, self._workers))
            resources = worker_resources(search.spec.compute, ray.cluster_resources().get("GPU", 0))
            self._slots = Slots(search, self._most, resources)
        return self._slots

    def close(self) -> None:
        """Leave the cluster; end it, if it was started here."""
        if self._slots is not None:
            self._slots.close()
        ray.shutdown()

    def _hand_out(self, slots: Slots) -> None:
        """Give every idle worker a task, and start workers where there is room, while there is work."""
        if self._work.is_over:
            self._shortages.forget()
            return
        slots.fill()
        self._shortages.look(slots, time.monotonic())
        for slot in slots.idle:
            if (task := self._work.propose()) is None:
                return
            slot.begin(task)

    def _take(self, slots: Slots, slot: Slot) -> None:
        """Do with a worker what its answer asks for."""
        try:
            answer: Any = ray.get(slot.answer)
        except (ActorUnavailableError, ObjectLostError):
            slot.probe()
        except RayTaskError as error:
            if slot.ready is not None:
                raise
            self._is_useless(slots, slot, describe_exception(error.cause))
        except RayError as error:
            self._died(slots, slot, error)
        else:
            self._answered(slots, slot, answer)

    def _answered(self, slots: Slots, slot: Slot, answer: Ready | Answer | str | None) -> None:
        if answer is None:  # it lives, but what it found is lost
            slots.drop(slot)
            self._lost(slot, f"its node {slot.node.name} was out of reach")
        elif isinstance(answer, str):
            self._is_useless(slots, slot, answer)
        elif isinstance(answer, Ready):
            slots.started(slot, answer)
            self._compare(slot.node, answer)
        elif slot.task is not None:
            slot.busy_s += answer.seconds
            self._went_on(slots, slot, _stage_of(answer, slot.task) if slot.is_far else answer.stage)
            if answer.broken is not None:
                self._is_useless(slots, slot, answer.broken)

    def _compare(self, node: Node, ready: Ready) -> None:
        """Remark on a node whose packages are other ones than the driver's."""
        here = versions(self._search.prepared.context.runtime)
        other = [
            f"{name} {ready.versions.get(name)} for {here[name]}"
            for name in here
            if ready.versions.get(name) != here[name]
        ]
        if other:
            self._search.remarks.cluster(f"node {node.name} has {', '.join(other)} of the driver's")

    def _went_on(self, slots: Slots, slot: Slot, stage: Stage | None) -> None:
        """Hand in a stage of a worker's task, and have it run the next one where that is wanted."""
        assert slot.task is not None
        number = slot.task.number
        if stage is None:
            slots.worked(slot.node)
            self._work.finish(number)
        elif stage.fault == "storage" and slot.is_far:
            self._lost(slot, stage.reason or "")
            slot.rest()
            self._leave_out(slots, slot.node, stage.reason or "")
            return
        elif stage.fault == "lost":
            self._lost(slot, stage.reason)
        elif stage.fault is not None:
            raise_fault(stage)  # else it ran out of the search's time, and is tried again by the next run
        elif self._work.advance(number, stage):
            slot.proceed()
            return
        slot.rest()

    def _is_useless(self, slots: Slots, slot: Slot, problem: str) -> None:
        if slots.failed(slot):
            self._leave_out(slots, slot.node, problem)

    def _give_up_slow_starts(self, slots: Slots) -> None:
        """Do without workers whose start takes too long: the user's code may hang there."""
        limit_s = start_limit_s(self._search.spec.budget.trial_timeout_s)
        for slot in slots.starting_since(limit_s) if limit_s is not None else []:
            self._is_useless(slots, slot, f"its start {SLOW_START} = {limit_s:g} s")

    def _leave_out(self, slots: Slots, node: Node, problem: str) -> None:
        slots.leave_out(node)
        if not slots.usable:
            raise WorkerStartError(f"no worker can start: {problem}")
        self._search.remarks.cluster(f"node {node.name} is left out, as no worker can work there: {problem}")

    def _died(self, slots: Slots, slot: Slot, error: RayError) -> None:
        if slot.task is None and not slots.has_left(slot.node, error):
            self._is_useless(slots, slot, f"its process {how_it_died(error)}")
            return
        slots.drop(slot)
        if slots.has_left(slot.node, error):
            self._lost(slot)
        elif slot.task is not None:
            limit_s = self._search.spec.budget.trial_timeout_s
            slot.collect()
            slot.task.folder.mkdir(parents=True, exist_ok=True)
            append(slot.task.folder, f"{error}\n")
            self._went_on(slots, slot, stage_of_death(slot.task, limit_s, how_it_died(error), was_killed=True))

    def _lost(self, slot: Slot, reason: str | None = None) -> None:
        """Have the task of a worker that cannot go on tried again; where no reason is given, its node is gone."""
        if slot.task is not None:
            self._work.lose(slot.task.number, reason or f"its node {slot.node.name} is gone")


def _stage_of(answer: Answer, task: Task) -> Stage | None:
    """The stage of a far worker's answer, whose files are on this machine now."""
    if answer.checkpoints and isinstance(task, Proposal) and task.checkpoints is not None:
        unpack(answer.checkpoints, task.checkpoints)
    return delivered(answer.stage, answer.files, task.folder)
