"""The bench: a process of its own that times artifacts against the uncompressed reference; see `paired_timing`.

It holds a machine-wide lock while it loads and times, is pinned to cores that workers do not use, waits until other
programs leave them alone, collects no garbage while timing, and when a runtime crashes, only this process dies.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
from loky import ProcessPoolExecutor
from loky.process_executor import TerminatedWorkerError

from ...core.errors import EvaluationError
from ...core.interrupts import end_with
from ...core.threads import torch_threads
from ..cards.target import Target
from ..profiling.fingerprint import require_cores
from ..runtimes.base import BindingSession, Session, get_runtime
from .conditions import Conditions, CoreState
from .energy import EnergyMeter, energy_meter
from .load_time import load_seconds
from .loads import LOADING_SHARE, LOADS
from .lock import alone
from .paired_timing import Loads, PairedTiming, Run, paired_timing, reference_timing, warm_up
from .peak_memory import peak_growth
from .quiet import QuietWait, busy_share
from .streams import load_streams


def bench_cores(threads: int) -> list[int]:
    """The cores the bench is pinned to: the last `threads` of those this process may use."""
    return sorted(os.sched_getaffinity(0))[-threads:]


def worker_cores(threads: int) -> list[int]:
    """The cores left for other work; all of them where the bench leaves none."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[:-threads] or cores


def cores_for_workers(target: Target) -> list[int]:
    """The cores of this machine that its bench of `target` leaves to workers; all where that is on another machine."""
    return worker_cores(0 if target.remote else target.threads)


class Bench:
    """Times artifacts of one target against one reference. Start it before pinning workers elsewhere; close it at the end.

    Args:
        target: where artifacts run.
        reference: the uncompressed model's artifact.
        inputs: one batch by name, each [batch, ...].
        cores: to pin to, from `bench_cores`.

    Raises:
        TargetError: the target has more threads than there are cores, which would spin waiting for each other.
    """

    def __init__(self, target: Target, reference: Path, inputs: Mapping[str, np.ndarray], cores: Sequence[int]) -> None:
        require_cores(target, cores)
        self._setup = (target.model_dump_json(), str(reference), inputs, list(cores), os.getpid())
        self._process: ProcessPoolExecutor | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the bench's process in the background; otherwise the first timing waits for it."""
        if self._process is None:
            self._process = ProcessPoolExecutor(max_workers=1, timeout=None, initializer=_set_up, initargs=self._setup)
            self._process.submit(os.getpid)  # processes start with the first task

    def time(self, candidate: Path, seconds: float = 2.0, quiet_reference_ms: float = math.inf) -> PairedTiming:
        """Time `candidate` against the reference for at most about `seconds`; a quiet machine takes a quarter of them.

        A busy machine is waited for, and what is far too uncertain is timed again, unless `SLIMFRONT_BENCH_WAIT_S` is 0: see `quiet`
        and `paired_timing`.

        Args:
            quiet_reference_ms: the reference's latency on this machine when it was quiet, where that is known.

        Raises:
            EvaluationError: the runtime crashed the bench's process; the next call starts a fresh one.
            LoweringError: the runtime refuses the artifact.
        """
        return self._call(_time_pair, str(candidate), seconds, quiet_reference_ms / 1e3)

    def time_reference(self, seconds: float = 1.0) -> tuple[float, float, float, int]:
        """Median, 95 % interval and number of the calmest blocks of the reference's latency in milliseconds, one batch."""
        return self._call(_time_reference, seconds)

    def peak_memory(self, candidate: Path) -> int:
        """Bytes that loading and running `candidate` needs at its peak, in a fresh process on the bench's cores.

        Raises:
            EvaluationError: this system does not report it, or the runtime crashed.
            LoweringError: the runtime refuses the artifact.
        """
        return self._in_fresh_process(_peak_memory, str(candidate), "its memory")

    def load_times(self, candidate: Path, repeats: int) -> list[float]:
        """Seconds from a file that is not in memory to its first outputs, in `repeats` fresh processes; see `load_time`.

        Raises:
            EvaluationError: the runtime crashed.
            LoweringError: the runtime refuses the artifact.
        """
        return [self._in_fresh_process(_load_seconds, str(candidate), "its loading") for _ in range(repeats)]

    def _in_fresh_process(self, function: Callable, candidate: str, what: str):
        """What `function` finds in a process that has loaded nothing before and freed nothing that could be used again."""
        target_json, _, inputs, cores, _ = self._setup
        fresh = ProcessPoolExecutor(max_workers=1, timeout=None)
        try:
            return fresh.submit(function, target_json, candidate, inputs, cores).result()
        except (BrokenProcessPool, TerminatedWorkerError) as error:
            raise EvaluationError(f"the runtime crashed while {what} was being measured") from error
        finally:
            fresh.shutdown(wait=True, kill_workers=True)

    def energy(self, candidate: Path, seconds: float, repeats: int) -> tuple[str, list[float]]:
        """Which counter was read, and joules of one batch in each of `repeats` stretches of `seconds`.

        Raises:
            EvaluationError: this machine has no counter that may be read, or the runtime crashed.
        """
        return self._call(_energy, str(candidate), seconds, repeats)

    def executed_precisions(self, candidate: Path) -> dict[str, str]:
        """Layer -> the precision it runs in, by the runtime's own report; loaded in the caller's process.

        Raises:
            LoweringError: the runtime refuses the artifact.
        """
        target = Target.model_validate_json(self._setup[0])
        with torch_threads(1):  # the caller's number is its own, and a session of torch's sets the process's
            return get_runtime(target.runtime).load(candidate, target).executed_precisions()

    def ready(self) -> None:
        """Return once the bench's process runs and has the reference loaded.

        Raises:
            EvaluationError: the runtime crashed over it.
        """
        self.pid()

    def pid(self) -> int:
        """Id of the bench's process."""
        return self._call(os.getpid)

    def close(self) -> None:
        """End the bench's process."""
        if self._process is not None:
            self._process.shutdown(wait=True, kill_workers=True)
            self._process = None

    def _call(self, function: Callable, *arguments: object):
        self.start()
        assert self._process is not None  # just started
        try:
            return self._process.submit(function, *arguments).result()
        except (BrokenProcessPool, TerminatedWorkerError) as error:
            self._process = None
            raise EvaluationError("the runtime crashed while the artifact was being timed") from error


# Below: what runs in the bench's process.


@dataclass
class _State:
    """`reference` is the load of `reference_file` that stays; `calm_reference_s` is its fastest time in this process."""

    target: Target
    reference_file: Path
    reference: Session
    inputs: Mapping[str, np.ndarray]
    cores: list[int]
    wait: QuietWait
    calm_reference_s: float = math.inf


_state: _State


def _set_up(target_json: str, reference: str, inputs: Mapping[str, np.ndarray], cores: list[int], parent: int) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle; it ends this process
    Thread(target=end_with, args=(parent,), daemon=True).start()
    os.sched_setaffinity(0, cores)  # before the runtime starts its threads, which inherit it
    target = Target.model_validate_json(target_json)
    # Others would be copied at each run.
    inputs = {name: np.require(values, requirements=["C", "W"]) for name, values in inputs.items()}
    with _alone(target):  # another bench may be timing on these cores
        wait = QuietWait(partial(busy_share, cores))
        _state = _State(target, Path(reference), load_streams(Path(reference), target), inputs, cores, wait)


def _time_pair(candidate: str, seconds: float, quiet_reference_s: float) -> PairedTiming:
    with _alone(_state.target):
        began = time.time()
        candidates, references, left = _loaded(Path(candidate), seconds)
        _state.wait()
        calm_s = min(_state.calm_reference_s, quiet_reference_s)
        before = CoreState.of(_state.cores)
        settle = _state.wait if _state.wait.is_patient else None
        timing = paired_timing(candidates, references, left, calm_s, settle)
        conditions = Conditions(before, CoreState.of(_state.cores), _state.wait.taken())
        ended = time.time()
    _state.calm_reference_s = min(_state.calm_reference_s, timing.reference_ms / 1e3)
    return replace(timing, began=began, ended=ended, conditions=conditions)


def _loaded(candidate: Path, seconds: float) -> tuple[Loads, Loads, float]:
    """Runs of several loads of a candidate and as many of the reference, and the seconds left: of one each where loading takes long."""
    start = time.perf_counter()
    candidates, references = [load_streams(candidate, _state.target)], [_state.reference]
    now = loaded = time.perf_counter()
    both_s = 2 * (loaded - start)
    while len(candidates) < LOADS and now - loaded + both_s <= LOADING_SHARE * seconds:
        candidates.append(load_streams(candidate, _state.target))
        references.append(load_streams(_state.reference_file, _state.target))
        before, now = now, time.perf_counter()
        both_s = now - before
    return [*map(_runner, candidates)], [*map(_runner, references)], seconds - (now - loaded)


def _time_reference(seconds: float) -> tuple[float, float, float, int]:
    with _alone(_state.target):
        _state.wait()
        median, low, high, blocks = reference_timing([_runner(_state.reference)], seconds)
    _state.calm_reference_s = min(_state.calm_reference_s, median)
    return median * 1e3, low * 1e3, high * 1e3, blocks


def _peak_memory(target_json: str, candidate: str, inputs: Mapping[str, np.ndarray], cores: list[int]) -> int:
    os.sched_setaffinity(0, cores)
    target = Target.model_validate_json(target_json)
    get_runtime(target.runtime)  # its library is loaded before the memory is

    def load_and_run() -> None:
        load_streams(Path(candidate), target).run(inputs)

    with _alone(target):
        return peak_growth(load_and_run)


def _load_seconds(target_json: str, candidate: str, inputs: Mapping[str, np.ndarray], cores: list[int]) -> float:
    os.sched_setaffinity(0, cores)
    target = Target.model_validate_json(target_json)
    get_runtime(target.runtime)  # its library is imported before the clock starts

    def load_and_run() -> None:
        load_streams(Path(candidate), target).run(inputs)

    with _alone(target):
        QuietWait(partial(busy_share, cores))()
        return load_seconds(Path(candidate), load_and_run)


def _energy(candidate: str, seconds: float, repeats: int) -> tuple[str, list[float]]:
    meter = energy_meter(_state.target.runtime)
    with _alone(_state.target):
        run = _runner(load_streams(Path(candidate), _state.target))
        warm_up(run, seconds)
        return meter.name, [_joules_of_a_run(run, seconds, meter) for _ in range(repeats)]


def _joules_of_a_run(run: Run, seconds: float, meter: EnergyMeter) -> float:
    deadline = time.perf_counter() + seconds
    before, runs = meter.joules(), 0
    while runs == 0 or time.perf_counter() < deadline:
        run()
        runs += 1
    return (meter.joules() - before) / runs


def _runner(session: Session) -> Run:
    if isinstance(session, BindingSession):
        return session.bound(_state.inputs)
    return lambda: session.run(_state.inputs)


@contextmanager
def _alone(target: Target) -> Iterator[None]:
    """Hold the machine's bench, with the garbage collector off."""
    with alone(target.runtime):
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
