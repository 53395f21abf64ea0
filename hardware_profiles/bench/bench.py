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
from dataclasses import dataclass, field, replace
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
from ..runtimes.base import Session, get_runtime
from .blocks import FIRST_RUNS, block, warm_up
from .conditions import Conditions, CoreState
from .energy import energy_meter, joules_of_a_run
from .load_time import load_seconds
from .lock import alone
from .paired_timing import PairedTiming, fastest_blocks, paired_timing, reference_timing
from .peak_memory import peak_growth
from .quiet import QuietWait, busy_share
from .room import room_of
from .several_loads import Loader
from .shaped_batches import ShapedBatch, mean_timing, runner, runners, weighted_mean
from .streams import load_streams

PARTS_SECONDS = 0.05
"""Seconds that the reference runs at each of several shapes, to see what part of their mean each is."""


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
        inputs: one batch by name, each [batch, ...]; memory, loading and energy are measured with it, and latency.
        cores: to pin to, from `bench_cores`.
        shaped: batches of other shapes, of whose latencies the weighted mean counts; none for that of `inputs`.

    Raises:
        TargetError: the target has more threads than there are cores, which would spin waiting for each other.
    """

    def __init__(
        self,
        target: Target,
        reference: Path,
        inputs: Mapping[str, np.ndarray],
        cores: Sequence[int],
        shaped: Sequence[ShapedBatch] = (),
    ) -> None:
        require_cores(target, cores)
        self._setup = (target.model_dump_json(), str(reference), inputs, list(cores), os.getpid())
        self._shaped = shaped or (ShapedBatch("", 1.0, inputs),)
        self._process: ProcessPoolExecutor | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the bench's process in the background; otherwise the first timing waits for it."""
        if self._process is None:
            self._process = ProcessPoolExecutor(
                max_workers=1, timeout=None, initializer=_set_up, initargs=(*self._setup, self._shaped)
            )
            self._process.submit(os.getpid)  # processes start with the first task

    def time(self, candidate: Path, seconds: float = 2.0, quiet_reference_ms: float = math.inf) -> PairedTiming:
        """Time `candidate` against the reference for at most about `seconds` at each shape; a quiet machine takes a quarter of them.

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
    """`reference` is the load of `reference_file` that stays; `calm_reference_s` are its fastest times in this process, of each batch,
    and `parts` what each is of their mean."""

    target: Target
    reference_file: Path
    reference: Session
    inputs: Mapping[str, np.ndarray]
    batches: Sequence[ShapedBatch]
    cores: list[int]
    wait: QuietWait
    calm_reference_s: list[float]
    parts: list[float] = field(default_factory=list)


_state: _State


def _set_up(
    target_json: str,
    reference: str,
    inputs: Mapping[str, np.ndarray],
    cores: list[int],
    parent: int,
    shaped: Sequence[ShapedBatch],
) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle; it ends this process
    Thread(target=end_with, args=(parent,), daemon=True).start()
    os.sched_setaffinity(0, cores)  # before the runtime starts its threads, which inherit it
    target = Target.model_validate_json(target_json)
    batches = [replace(batch, inputs=_own(batch.inputs)) for batch in shaped]
    with _alone(target):  # another bench may be timing on these cores
        wait = QuietWait(partial(busy_share, cores))
        session, calm_s = load_streams(Path(reference), target), [math.inf] * len(batches)
        _state = _State(target, Path(reference), session, _own(inputs), batches, cores, wait, calm_s)


def _own(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays as runtimes read them where they are; others would be copied at each run."""
    return {name: np.require(values, requirements=["C", "W"]) for name, values in inputs.items()}


def _time_pair(candidate: str, seconds: float, quiet_reference_s: float) -> PairedTiming:
    with _alone(_state.target):
        began = time.time()
        kept = _state.reference_file, _state.reference
        candidates, references, left = _loader().several(Path(candidate), *kept, seconds)
        _state.wait()
        calm_s = _calm_references(quiet_reference_s)
        before = CoreState.of(_state.cores)
        settle = _state.wait if _state.wait.is_patient else None
        timings = [
            paired_timing(runners(candidates, batch), runners(references, batch), left, calm, settle)
            for batch, calm in zip(_state.batches, calm_s, strict=True)
        ]
        conditions = Conditions(before, CoreState.of(_state.cores), _state.wait.taken())
        ended = time.time()
    _note_calm([timing.reference_ms / 1e3 for timing in timings])
    return replace(mean_timing(timings, _state.batches), began=began, ended=ended, conditions=conditions)


def _note_calm(seconds: Sequence[float]) -> None:
    _state.calm_reference_s = [*map(min, _state.calm_reference_s, seconds)]


def _calm_references(quiet_mean_s: float) -> list[float]:
    """The reference's quiet time of each batch: the fastest that was seen here, or its part of the mean that is known of them."""
    if math.isinf(quiet_mean_s):
        return _state.calm_reference_s
    if not _state.parts:
        _state.parts = _parts_of_mean()
    return [min(calm, quiet_mean_s * part) for calm, part in zip(_state.calm_reference_s, _state.parts, strict=True)]


def _parts_of_mean() -> list[float]:
    """What the reference takes for each batch, over the weighted mean: a disturbance slows all of them."""
    if len(_state.batches) == 1:
        return [1.0]
    fastest = [min(fastest_blocks(runners([_state.reference], batch), PARTS_SECONDS)) for batch in _state.batches]
    mean = weighted_mean(fastest, _state.batches)
    return [seconds / mean for seconds in fastest]


def _loader() -> Loader:
    def warm(session: Session) -> None:
        for batch in _state.batches:
            block(runner(session, batch.inputs), FIRST_RUNS)

    target = _state.target
    return Loader(partial(load_streams, target=target), warm, room_of(target.runtime))


def _time_reference(seconds: float) -> tuple[float, float, float, int]:
    with _alone(_state.target):
        _state.wait()
        found = [reference_timing(runners([_state.reference], batch), seconds) for batch in _state.batches]
    medians, lows, highs, blocks = zip(*found, strict=True)
    _note_calm(medians)
    median, low, high = (weighted_mean(each, _state.batches) * 1e3 for each in (medians, lows, highs))
    return median, low, high, min(blocks)


def _peak_memory(target_json: str, candidate: str, inputs: Mapping[str, np.ndarray], cores: list[int]) -> int:
    os.sched_setaffinity(0, cores)
    target = Target.model_validate_json(target_json)
    get_runtime(target.runtime)  # its library is loaded before the memory is
    with _alone(target):
        return peak_growth(lambda: load_streams(Path(candidate), target).run(inputs))


def _load_seconds(target_json: str, candidate: str, inputs: Mapping[str, np.ndarray], cores: list[int]) -> float:
    os.sched_setaffinity(0, cores)
    target = Target.model_validate_json(target_json)
    get_runtime(target.runtime)  # its library is imported before the clock starts
    with _alone(target):
        QuietWait(partial(busy_share, cores))()
        return load_seconds(Path(candidate), lambda: load_streams(Path(candidate), target).run(inputs))


def _energy(candidate: str, seconds: float, repeats: int) -> tuple[str, list[float]]:
    meter = energy_meter(_state.target.runtime)
    with _alone(_state.target):
        run = runner(load_streams(Path(candidate), _state.target), _state.inputs)
        warm_up(run, seconds)
        return meter.name, [joules_of_a_run(run, seconds, meter) for _ in range(repeats)]


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
