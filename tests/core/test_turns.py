"""Turns on a GPU. None is needed: torch is asked for nothing but its UUID and to finish its work, and both are stood in for.

Threads take turns as processes do: every turn opens its files anew.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest
import torch
from slimfront.core.machine import turns
from slimfront.core.machine.turns import gpu_shared, gpu_to_itself


@pytest.fixture(autouse=True)
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two GPUs, of which "cuda" is the first; the devices whose work was waited for."""
    monkeypatch.setenv("SLIMFRONT_BENCH_LOCK", str(tmp_path / "bench.lock"))
    uuids = {"cuda": "GPU-a", "cuda:0": "GPU-a", "cuda:1": "GPU-b"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[str(torch.device(device))])
    )
    waited_for: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited_for.append)
    turns._uuid.cache_clear()
    yield waited_for
    turns._uuid.cache_clear()


@contextmanager
def running(*functions: Callable[[], object]) -> Iterator[None]:
    threads = [Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_timing_gets_in_between_steps_that_always_overlap_and_none_runs_during_it(finished):
    stop, steps, inside = Event(), [0, 0], [0, 0]

    def train(which: int) -> None:
        while not stop.is_set():
            with gpu_shared("cuda:0"):
                inside[which] = 1
                time.sleep(0.004 + 0.001 * which)
                steps[which] += 1
                inside[which] = 0

    with running(lambda: train(0), lambda: train(1)):
        while min(steps) < 3:
            time.sleep(0.001)
        for _ in range(5):
            asked = time.monotonic()
            with gpu_to_itself("cuda"):  # the same GPU by another name
                assert time.monotonic() - asked < 2
                before = list(steps)
                time.sleep(0.02)
                assert (inside, steps) == ([0, 0], before)
        stop.set()
    assert "cuda:0" in finished  # what makes room finishes its own work first


def test_another_gpu_and_the_processor_are_not_waited_for(tmp_path):
    with gpu_to_itself("cuda:0"):
        done = []
        with running(
            lambda: [done.append(name) for name in ("cuda:1", "cpu") for _ in (gpu_shared(name).__enter__(),)]
        ):
            pass
        assert done == ["cuda:1", "cpu"]
    assert {file.name for file in tmp_path.iterdir()} == {
        f"bench.lock.{uuid}{kind}" for uuid in ("GPU-a", "GPU-b") for kind in ("", ".waiting")
    }


def test_a_turn_within_a_turn_is_part_of_it_although_somebody_waits():
    entered, timed = Event(), Event()

    def timing() -> None:
        with gpu_to_itself("cuda"):
            timed.set()

    def step() -> None:
        with gpu_shared("cuda"):
            entered.set()
            waiting, _ = turns._files("cuda")
            while not turns._is_wanted(waiting):
                time.sleep(0.001)
            with gpu_shared("cuda:0"):
                assert not timed.is_set()

    with running(step):
        entered.wait(10)
        with running(timing):
            pass
    assert timed.is_set()


def test_nobody_waits_for_what_has_died():
    def dies() -> None:
        with pytest.raises(RuntimeError), gpu_to_itself("cuda"):
            raise RuntimeError

    with running(dies):
        pass
    with gpu_shared("cuda"):
        pass
