"""Latency mode is one session; throughput mode is several that run at the same time and share the threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from slimfront.hardware_profiles.bench import streams
from slimfront.hardware_profiles.bench.streams import Streams, load_streams
from slimfront.hardware_profiles.cards.target import load_target


class Meeting:
    """A session whose runs wait for one another, and so end only where they run at the same time."""

    def __init__(self, barrier: threading.Barrier, number: int) -> None:
        self._barrier, self._number = barrier, number

    def run(self, inputs: np.ndarray) -> np.ndarray:
        self._barrier.wait(timeout=20)
        return inputs + self._number

    def executed_precisions(self) -> dict[str, str]:
        return {"fc": "i8"}


def test_streams_run_at_the_same_time():
    barrier = threading.Barrier(3)
    together = Streams([Meeting(barrier, number) for number in range(3)])
    for _ in range(5):
        assert together.run(np.zeros(1)) == 2
    assert together.executed_precisions() == {"fc": "i8"}


def test_what_breaks_in_a_stream_is_reported():
    barrier = threading.Barrier(2)
    barrier.abort()
    with pytest.raises(threading.BrokenBarrierError):
        Streams([Meeting(barrier, 0), Meeting(barrier, 1)]).run(np.zeros(1))


@pytest.mark.parametrize(("threads", "count", "loads"), [(4, 1, [None]), (4, 2, [2, 2]), (3, 3, [1, 1, 1])])
def test_streams_share_the_targets_threads(threads, count, loads, monkeypatch):
    asked = []

    class Recording:
        def load(self, artifact, target, threads=None):
            asked.append(threads)
            return Meeting(threading.Barrier(1), 0)

    monkeypatch.setattr(streams, "get_runtime", lambda name: Recording())
    target = load_target("cpu-openvino").model_copy(update={"threads": threads, "streams": count})
    session = load_streams(Path("model.onnx"), target)
    assert asked == loads
    assert session.run(np.ones(2)).tolist() == [1, 1]
