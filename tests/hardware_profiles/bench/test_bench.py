"""The bench: what it measures, where, alone, and what a crash of the runtime or of the driver leaves behind.

ONNX Runtime is replaced in the bench's process by one whose models say how long an inference takes.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from slimfront.core.errors import EvaluationError, LoweringError, TargetError
from slimfront.core.machine import turns
from slimfront.hardware_profiles.bench import lock as bench_lock
from slimfront.hardware_profiles.bench.bench import Bench, bench_cores, worker_cores
from slimfront.hardware_profiles.cards.target import load_target, shipped_targets
from slimfront.hardware_profiles.runtimes.base import get_runtime

pytestmark = pytest.mark.serial

FAKE = '''
"""Stands in for ONNX Runtime: a model is a JSON file that says what one inference does."""
import json, os, random, time

__version__ = "0"


class SessionOptions:
    def add_session_config_entry(self, key, value):
        pass


class _Input:
    name = "input"


class _Output:
    name = "output"


class InferenceSession:
    def __init__(self, path, options, providers):
        with open(path) as file:
            text = file.read()
        if not text.startswith("{"):
            from onnxruntime.capi.onnxruntime_pybind11_state import Fail
            raise Fail("this is no model")
        self.model = json.loads(text)

    def get_inputs(self):
        return [_Input()]

    def get_outputs(self):
        return [_Output()]

    def run(self, outputs, inputs):
        start = time.monotonic()
        if self.model.get("crashes"):
            os._exit(3)
        spin = self.model["milliseconds"] * (1 + self.model.get("jitter", 0) * random.random()) / 1e3
        while time.monotonic() - start < spin:
            pass
        if "log" in self.model:
            with open(self.model["log"], "a") as file:
                print(os.getpid(), start, time.monotonic(), file=file)
        return [inputs["input"]]
'''
ERRORS = "\n".join(
    f"class {name}(Exception): pass"
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented", "RuntimeException")
)  # fmt: skip

Model = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Writes models of the fake runtime, which the bench's processes find first; they have a lock of their own."""
    package = tmp_path / "fake" / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    (package / "capi" / "__init__.py").touch()
    (package / "capi" / "onnxruntime_pybind11_state.py").write_text(ERRORS)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLIMFRONT_BENCH_LOCK", str(tmp_path / "slimfront-bench.lock"))

    def write(name: str, milliseconds: float = 1.0, **more: object) -> Path:
        path = tmp_path / f"{name}.onnx"
        path.write_text(json.dumps({"milliseconds": milliseconds, **more}))
        return path

    return write


@pytest.fixture
def bench(model: Model) -> Iterator[Callable[..., Bench]]:
    opened = []

    def open_bench(reference: Path, cores: list[int] | None = None) -> Bench:
        cores = bench_cores(1) if cores is None else cores
        opened.append(Bench(load_target("cpu-onnxruntime"), reference, {"input": np.zeros((1, 2), np.float32)}, cores))
        return opened[-1]

    yield open_bench
    for each in opened:
        each.close()


def logged(path: Path) -> tuple[int, float, float]:
    """Process, start of the first and end of the last inference in a log."""
    rows = [line.split() for line in path.read_text().splitlines()]
    (pid,) = {int(row[0]) for row in rows}
    return pid, min(float(row[1]) for row in rows), max(float(row[2]) for row in rows)


def until(happened: Callable[[], bool], seconds: float) -> float:
    """Seconds until something happened; fails after `seconds`."""
    start = time.monotonic()
    while not happened():
        assert time.monotonic() - start < seconds, "it did not happen"
        time.sleep(0.02)
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_a_candidate_that_takes_a_third_of_the_time_is_three_times_as_fast(factor, model, bench):
    timing = bench(model("reference", 1.5)).time(model("candidate", 1.5 / factor), 2.0)
    assert timing.speedup == pytest.approx(factor, rel=0.05)
    assert timing.low <= timing.speedup <= timing.high
    assert timing.reference_ms == pytest.approx(1.5, rel=0.1)
    assert timing.candidate_ms == pytest.approx(1.5 / factor, rel=0.1)
    assert timing.pairs >= 2


def test_the_reference_is_timed_by_itself(model, bench):
    median, low, high, blocks = bench(model("reference", 2.0)).time_reference(0.2)
    assert low <= median <= high
    assert median == pytest.approx(2.0, rel=0.2)
    assert blocks >= 2


def test_the_bench_runs_in_a_process_of_its_own_on_its_cores(model, bench, tmp_path):
    cores = [max(os.sched_getaffinity(0))]
    ours = os.sched_getaffinity(0)
    timer = bench(model("reference", 0.1), cores)
    timer.time(model("candidate", 0.1, log=str(tmp_path / "log")), 0.1)
    pid, *_ = logged(tmp_path / "log")
    assert pid != os.getpid()
    assert psutil.Process(pid).cpu_affinity() == cores
    assert os.sched_getaffinity(0) == ours
    timer.close()
    timer.close()  # closing twice does no harm
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_one_process_serves_every_timing(model, bench, tmp_path):
    timer, logs = bench(model("reference", 0.1)), [tmp_path / "first", tmp_path / "second"]
    for log in logs:
        timer.time(model(log.name, 0.1, log=str(log)), 0.05)
    assert logged(logs[0])[0] == logged(logs[1])[0]


def test_a_refused_artifact_leaves_the_bench_running(model, bench, tmp_path):
    timer, log = bench(model("reference", 0.1)), tmp_path / "log"
    timer.time(model("good", 0.1, log=str(log)), 0.05)
    pid, *_ = logged(log)
    bad = tmp_path / "bad.onnx"
    bad.write_text("nonsense")
    with pytest.raises(LoweringError, match=r"^ONNX Runtime refuses bad.onnx: this is no model$"):
        timer.time(bad, 0.05)
    log.unlink()
    timer.time(model("good", 0.1, log=str(log)), 0.05)
    assert logged(log)[0] == pid


@pytest.mark.slow
def test_a_runtime_that_crashes_fails_its_timing_and_no_other(model, bench, tmp_path):
    timer, log = bench(model("reference", 0.1)), tmp_path / "log"
    for _ in range(2):
        with pytest.raises(EvaluationError, match=r"^the runtime crashed while the artifact was being timed$"):
            timer.time(model("crashing", crashes=True), 0.05)
        assert timer.time(model("good", 0.1, log=str(log)), 0.05).pairs >= 2


def test_a_reference_that_cannot_be_loaded_is_an_error_not_a_hang(bench, tmp_path):
    with pytest.raises(EvaluationError):
        bench(tmp_path / "missing.onnx").time(tmp_path / "missing.onnx", 0.05)


@pytest.mark.slow
def test_two_benches_never_time_at_once(model, bench, tmp_path):
    timers = [bench(model("reference", 0.2)) for _ in range(2)]
    logs = [[tmp_path / f"log-{index}-{call}" for call in range(3)] for index in range(2)]

    def use(index: int) -> None:
        for log in logs[index]:
            timers[index].time(model(log.name, 0.2, log=str(log)), 0.1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(use, range(2)))
    found = [logged(log) for pair in logs for log in pair]
    assert len({pid for pid, _, _ in found}) == 2
    spans = sorted((start, end) for _, start, end in found)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.slow
def test_a_bench_that_is_killed_frees_the_machine(model, bench, tmp_path):
    log, lock = tmp_path / "log", FileLock(tmp_path / "slimfront-bench.lock")
    timer = bench(model("reference", 1))
    with ThreadPoolExecutor(1) as pool:
        timing = pool.submit(timer.time, model("shaky", 1, jitter=20, log=str(log)), 60)
        until(log.exists, 20)
        with pytest.raises(TimeoutError):
            lock.acquire(timeout=0.1)
        os.kill(logged(log)[0], signal.SIGKILL)
        start = time.monotonic()
        with lock.acquire(timeout=5):
            assert time.monotonic() - start < 5
        with pytest.raises(EvaluationError):
            timing.result(timeout=20)
    assert timer.time(model("good", 0.1), 0.05).pairs >= 2


DRIVER = """
    import sys
    from pathlib import Path
    import numpy as np
    from slimfront.hardware_profiles.bench.bench import Bench, bench_cores
    from slimfront.hardware_profiles.cards.target import load_target, shipped_targets

    if __name__ == "__main__":
        reference, candidate = map(Path, sys.argv[1:])
        with Bench(load_target("cpu-onnxruntime"), reference, {"input": np.zeros((1, 2), np.float32)}, bench_cores(1)) as bench:
            bench.time(candidate, 60)
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_bench_behind(model, tmp_path):
    log, lock = tmp_path / "log", FileLock(tmp_path / "slimfront-bench.lock")
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    shaky = model("shaky", 1, jitter=20, log=str(log))
    driver = subprocess.Popen([sys.executable, str(script), str(model("reference", 1)), str(shaky)], cwd=tmp_path)
    try:
        until(log.exists, 30)
        pid, *_ = logged(log)
    finally:
        driver.kill()
        driver.wait()
    with lock.acquire(timeout=5):
        pass
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 5)


SPIN = "import os, sys, time; os.sched_setaffinity(0, {int(sys.argv[1])}); end = time.time() + 60\nwhile time.time() < end: pass"


@contextmanager
def neighbour(core: int) -> Iterator[None]:
    """A process that takes half of a core."""
    process = subprocess.Popen([sys.executable, "-c", SPIN, str(core)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_busy_bench_waits_says_so_and_times_as_on_a_quiet_machine(model, bench, monkeypatch):
    """A neighbour on the bench's own core that ends after two seconds, and one that stays."""
    monkeypatch.setenv("SLIMFRONT_BENCH_WAIT_S", "5")
    timer, core = bench(model("reference", 1.5)), bench_cores(1)[0]
    timer.ready()
    with ThreadPoolExecutor(1) as pool, neighbour(core):
        time.sleep(0.5)
        timing = pool.submit(timer.time, model("candidate", 0.5), 1.0)
        time.sleep(2)
        assert not timing.done()
        began = time.time()
    found = timing.result(60)
    assert found.conditions.waited_s >= 1.5
    assert any("for a quiet machine" in remark for remark in found.conditions.remarks)
    assert found.speedup == pytest.approx(3, rel=0.1)
    assert found.ended > began


def test_a_neighbour_that_stays_is_waited_for_to_the_limit_and_cannot_make_a_candidate_faster(
    model, bench, monkeypatch
):
    monkeypatch.setenv("SLIMFRONT_BENCH_WAIT_S", "0.5")
    timer = bench(model("reference", 1.5))
    quiet_ms = timer.time_reference(0.5)[0]
    with neighbour(bench_cores(1)[0]):
        time.sleep(0.5)
        found = [timer.time(model("candidate", 0.5), 0.3, quiet_ms) for _ in range(4)]
    assert found[0].conditions.waited_s >= 0.5
    assert sum(timing.conditions.waited_s for timing in found) < 2
    assert all(timing.conservative_speedup < 3 * 1.1 for timing in found)
    assert all(timing.low <= 3 <= timing.high or not timing.is_uncertain for timing in found)


@pytest.mark.slow
@pytest.mark.parametrize("card", [name for name in shipped_targets() if name != "cpu-torch-compile"])
def test_a_real_artifact_is_as_fast_as_itself_and_a_larger_one_slower(card, make_network, candidate, inputs, tmp_path):
    target, paths = load_target(card), {}
    try:
        runtime = get_runtime(target.runtime)
    except TargetError as reason:  # no GPU, or no package for it
        pytest.skip(str(reason))
    for name, width in (("small", 4), ("large", 64)):
        network = type(make_network("residual"))(width).eval()
        example = torch.zeros(1, *network.shape)
        paths[name] = runtime.lower(candidate(network, {}), example, target, tmp_path / f"{name}{runtime.suffix}").path
    batch = {"input": inputs(network.shape, 1, 0).numpy()}
    with Bench(target, paths["small"], batch, bench_cores(1)) as real:
        # Half a microsecond between two sessions of one file would be more than this.
        assert any(real.time(paths["small"], 0.5).speedup == pytest.approx(1, abs=0.04) for _ in range(4))
        assert real.time(paths["large"], 0.5).speedup < 0.7


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(1, 8))
def test_bench_and_workers_share_no_core_where_there_are_enough(cores, threads):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "sched_getaffinity", lambda _: cores)
        ours, others = bench_cores(threads), worker_cores(threads)
    assert len(ours) == min(threads, len(cores))
    if len(cores) > threads:
        assert set(ours).isdisjoint(others)
        assert sorted([*others, *ours]) == sorted(cores)
    else:
        assert others == ours == sorted(cores)


def test_the_bench_takes_the_last_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 0, 2, 7})
    assert (bench_cores(1), worker_cores(1)) == ([7], [0, 2, 5])
    assert (bench_cores(3), worker_cores(3)) == ([2, 5, 7], [0])


def test_everyone_on_a_machine_has_one_lock_whatever_their_folder_for_temporary_files(tmp_path):
    """TMPDIR is a person's own; a bench that follows it is not alone."""
    asked = "import slimfront.hardware_profiles.bench.lock as b; print(b.LOCK_FILE)"
    environment = {name: value for name, value in os.environ.items() if name != "SLIMFRONT_BENCH_LOCK"}

    def path(**changes: str) -> str:
        command = [sys.executable, "-c", asked]
        return subprocess.run(
            command, env={**environment, **changes}, capture_output=True, text=True, check=True
        ).stdout

    assert path(TMPDIR=str(tmp_path)) == path() == "/tmp/slimfront-bench.lock\n"
    assert path(SLIMFRONT_BENCH_LOCK="/elsewhere") == "/elsewhere\n"


def test_a_bench_of_a_gpu_has_the_machine_and_that_gpu_and_other_work_waits_for_no_other_bench(tmp_path, monkeypatch):
    """Torch is asked for the UUID alone, and stood in for."""
    monkeypatch.setattr(bench_lock, "LOCK_FILE", tmp_path / "lock")
    monkeypatch.setenv("SLIMFRONT_BENCH_LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(turns, "_uuid", lambda device: "GPU-a")
    umask = os.umask(0o077)
    with bench_lock.alone("torch-cuda"):
        os.umask(umask)
    assert {oct(file.stat().st_mode)[-3:] for file in tmp_path.iterdir()} == {"666"}, "another user may lock them too"
    other = FileLock(tmp_path / "lock")
    with bench_lock.alone("torch-cuda"):
        with pytest.raises(TimeoutError):
            other.acquire(timeout=0)
        assert turns._is_wanted(tmp_path / "lock.GPU-a.waiting")
    with bench_lock.alone("openvino"), pytest.raises(TimeoutError):
        other.acquire(timeout=0)
    assert not turns._is_wanted(tmp_path / "lock.GPU-a.waiting")
    for untimed in (bench_lock.sharing_gpu, bench_lock.alone_on_gpu):
        with untimed("torch-cuda"), other.acquire(timeout=0):
            pass
