"""Which workers start where, which wait for what other Ray jobs hold, and how they died."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slimfront.core.errors import SearchError, UserError
from slimfront.search.cluster import cluster
from slimfront.search.execution import ray_slots
from slimfront.search.execution.ray_slots import Slots, how_it_died
from slimfront.search.execution.shortages import HELD_SECONDS, PATIENCE_SECONDS, Shortages

from ray._private import worker as ray_process  # isort: skip
from ray.exceptions import RayError  # isort: skip


class FakeSlot:
    answer = task = ready = None

    def __init__(self, node: Any, *_: object) -> None:
        self.node, self.began = node, time.monotonic() - 700

    def kill(self) -> None:
        """Nothing."""


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch):
    """Makes the slots of a cluster: name of each node -> how many slots it has, and how many are free now; it may change."""
    from slimfront.search.cluster import nodes

    def made(cluster: dict[str, tuple[int, int]], most: int = 99, resources: dict[str, float] | None = None) -> Slots:
        there = {
            name: {"NodeID": name, "NodeManagerHostname": name, "NodeManagerAddress": "::1", "Alive": True}
            for name in cluster
        }
        scale = resources or {"CPU": 1}
        alive = lambda: [{**node, "Resources": {"CPU": cluster[name][0]}} for name, node in there.items()]  # noqa: E731
        free = lambda: {name: {"CPU": cluster[name][1]} for name in cluster}  # noqa: E731
        monkeypatch.setattr(nodes, "ray", SimpleNamespace(nodes=alive))
        monkeypatch.setattr(nodes, "available_resources_per_node", free)
        monkeypatch.setattr(ray_slots, "Slot", FakeSlot)
        monkeypatch.setattr(ray_slots, "worker_setup", lambda *_: None)
        monkeypatch.setattr(ray_slots, "driver_node", lambda: "a")
        monkeypatch.setattr(ray_slots, "ray", SimpleNamespace(put=lambda _: None))
        monkeypatch.setattr(Slots, "_shipment", None)
        monkeypatch.setattr(ray_slots, "LOOK_SECONDS", 0.0)
        return Slots(SimpleNamespace(), most, scale)  # pyright: ignore[reportArgumentType]

    return made


def test_workers_start_where_there_is_room_and_the_others_wait(slots) -> None:
    cluster = {"a": (4, 4), "b": (4, 1)}
    made = slots(cluster)
    made.fill()
    assert [slot.node.id for slot in made.idle].count("a") == 4
    assert [slot.node.id for slot in made.idle].count("b") == 1
    assert made.waiting == 3
    text = made.waiting_text()
    assert text.startswith("3 more workers could start where other Ray jobs hold the 1 CPU: on node b (::1, b)")
    assert "--workers 5 asks for no more" in text
    cluster |= {"a": (4, 0), "b": (4, 3)}
    made.fill()
    assert (len(made.idle), made.waiting) == (8, 0)


def test_workers_that_do_not_come_to_be_ready_are_known(slots) -> None:
    made = slots({"a": (2, 2)})
    made.fill()
    first, second = made.idle
    assert made.starting_since(600) == [first, second]
    second.ready = object()
    assert made.starting_since(600) == [first]
    assert made.starting_since(800) == []


def test_a_node_that_is_left_out_takes_its_other_workers_that_do_not_start_with_it(slots) -> None:
    made = slots({"a": (4, 4), "b": (1, 1)})
    made.fill()
    stuck = [slot for slot in made.idle if slot.node.id == "a"]
    for slot in stuck:
        if made.failed(slot):
            made.leave_out(slot.node)
    assert [slot.node.id for slot in made.idle] == ["b"]
    assert list(made.left_out) == ["a"]


def test_no_more_workers_wait_than_are_wanted(slots) -> None:
    made = slots({"a": (4, 1)}, most=2)
    made.fill()
    assert (len(made.idle), made.waiting) == (1, 1)
    assert slots({"a": (4, 4)}, most=2).waiting == 0


def test_a_cluster_that_others_hold_whole_says_that_no_trial_runs(slots) -> None:
    made = slots({"a": (2, 0)})
    made.fill()
    assert (made.idle, made.waiting) == ([], 2)
    assert "until then no trial runs" in made.waiting_text()


def test_parts_of_a_device_are_counted_as_ray_counts_them(slots) -> None:
    made = slots({"a": (1, 1)}, resources={"CPU": 0.2})
    made.fill()
    assert len(made.idle) == 5
    too_small = slots({"a": (2, 2)}, resources={"CPU": 4, "GPU": 1})
    assert too_small.room == 0
    assert too_small.too_small_text().startswith(
        "no node of the Ray cluster has the 4 CPU and 1 GPU that one worker takes"
    )


def test_only_what_lasts_while_there_is_work_is_a_shortage() -> None:
    said: list[str] = []
    shortages = Shortages(said.append)

    def look(at: float, *, waiting: int = 0, usable: int = 1) -> None:
        text = SimpleNamespace(waiting_text=lambda: "held", too_small_text=lambda: "too small")
        shortages.look(SimpleNamespace(waiting=waiting, usable=[0] * usable, **vars(text)), at)  # pyright: ignore[reportArgumentType]

    look(0)
    look(500, waiting=1, usable=0)  # a worker died in a long trial: Ray has not noted yet that its processors are free
    look(500 + HELD_SECONDS, waiting=1)
    look(501 + HELD_SECONDS)
    shortages.forget()  # nothing to hand out
    look(900, waiting=1, usable=0)
    assert said == []
    look(901 + HELD_SECONDS, waiting=1)
    look(930, waiting=1)
    assert said == ["held"]
    look(1000, usable=0)
    with pytest.raises(SearchError, match="no node of the Ray cluster has had room"):
        look(1001 + PATIENCE_SECONDS, usable=0)


def test_a_death_is_told_in_one_short_line() -> None:
    text = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RayWorker\n\tactor_id: 0a1b\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
        "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed"
    )
    assert how_it_died(RayError(text)) == "died: Worker unexpectedly exits with a connection error code 2. End of file"
    assert how_it_died(RayError("The node has died.")) == "died: The node has died"


def test_what_ray_says_of_nodes_is_logged_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    said = {"lines": ["a node is dead"], "pid": "raylet", "is_err": False}
    poll = iter([(0, {"job_id": None, "error_message": said["lines"][0]})])
    subscriber = SimpleNamespace(poll=lambda: next(poll), subscribe=lambda: None, close=lambda: None)
    process = SimpleNamespace(gcs_error_subscriber=subscriber, current_job_id=ray_process.JobID.nil(), set_err=None)
    with pytest.raises(StopIteration):
        ray_process.listen_error_messages(process, threading.Event())  # pyright: ignore[reportArgumentType]
    assert capfd.readouterr().out == ""


def test_a_home_folder_that_takes_no_file_keeps_no_ray_from_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.TOKEN, "")
    monkeypatch.delenv(cluster.TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster._give_token()
    assert cluster.TOKEN not in os.environ
    monkeypatch.setenv("HOME", "/proc")
    cluster._give_token()
    assert len(os.environ[cluster.TOKEN]) == 64


def test_whatever_ray_raises_at_its_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out\nduring startup.")  # its very class

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    monkeypatch.setattr(cluster, "take_ending", lambda: None)
    with pytest.raises(
        UserError, match=r"Ray cannot be started or joined: The current node timed out during startup\.$"
    ):
        cluster.connect()
