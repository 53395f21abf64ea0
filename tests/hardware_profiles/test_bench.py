"""The bench: what it times, that it is alone, and what becomes of it when things die."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock, Timeout
from slimfront.errors import EvaluationError, LoweringError
from slimfront.hardware_profiles import bench as module
from slimfront.hardware_profiles.bench import Bench, bench_cores, median_interval, paired_timing, worker_cores
from slimfront.hardware_profiles.runtime import get_runtime
from slimfront.hardware_profiles.target import load_target
from slimfront.spaces.candidate import Candidate
from slimfront.spaces.policy import Policy
from torch import nn, ones

pytestmark = pytest.mark.slow


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    target = load_target("cpu-openvino")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    path = tmp_path / "model.onnx"
    get_runtime("openvino").lower(Candidate(Policy(), model), ones(1, 3, 16, 16), target, path)
    return path


@pytest.fixture
def bench(artifact: Path):
    inputs = np.ones((1, 3, 16, 16), np.float32)
    with Bench(load_target("cpu-openvino"), artifact, inputs, bench_cores(1)) as opened:
        yield opened


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_callable_twice_as_fast_has_a_speedup_of_two() -> None:
    timing = paired_timing(lambda: spin(0.001), lambda: spin(0.002), seconds=1.0)
    assert timing.speedup == pytest.approx(2.0, rel=0.1)
    assert timing.low <= timing.speedup <= timing.high
    assert timing.pairs >= module.PAIRS_BETWEEN_LOOKS
    assert timing.candidate_ms == pytest.approx(1.0, rel=0.3)


def test_the_interval_of_a_median_by_order_statistics() -> None:
    # For n = 20 the 6th and 15th smallest hold the median with 95.9 %: P(6 <= Binomial(20, 1/2) <= 14).
    assert median_interval(list(range(1, 21))) == (6, 15)


def test_an_artifact_against_itself_is_about_as_fast(bench: Bench, artifact: Path) -> None:
    assert bench.time(artifact, 0.5).speedup == pytest.approx(1.0, abs=0.25)


def test_its_process_is_pinned_to_its_cores(bench: Bench, artifact: Path) -> None:
    bench.time_reference(0.05)
    affinities = [
        child.cpu_affinity()
        for child in psutil.Process().children(recursive=True)
        if "loky" in " ".join(child.cmdline())
    ]
    assert bench_cores(1) in affinities


def test_workers_keep_off_its_cores() -> None:
    cores = os.sched_getaffinity(0)
    assert bench_cores(1) == sorted(cores)[-1:]
    if len(cores) > 1:
        assert not set(bench_cores(1)) & set(worker_cores(1))
    assert worker_cores(len(cores)) == sorted(cores)  # nothing is left over: they share


def test_a_refused_artifact_is_one_line_and_the_next_is_timed(bench: Bench, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(LoweringError, match=r"OpenVINO refuses broken\.onnx"):
        bench.time(tmp_path / "broken.onnx")
    assert bench.time(artifact, 0.05).speedup > 0


def test_a_crash_is_an_evaluation_error_and_the_next_is_timed(bench: Bench, artifact: Path) -> None:
    with pytest.raises(EvaluationError, match="crashed"):
        bench._call(os._exit, 1)
    assert bench.time(artifact, 0.05).speedup > 0


def _hold(ready) -> None:
    with module._quiet():
        ready.set()
        time.sleep(60)


def test_a_killed_holder_frees_the_machine() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(ready,))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(Timeout):
        FileLock(module.LOCK_FILE, mode=0o666).acquire(timeout=0.2)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with FileLock(module.LOCK_FILE, mode=0o666).acquire(timeout=5):
        pass
