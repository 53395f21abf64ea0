"""The bench: paired, interleaved timing of a candidate against the uncompressed reference, in a process of its own.

Candidate and reference run alternately, A B B A, in short blocks; the fastest run of a block stands for it, each pair of
neighbouring blocks gives one ratio, and the median of the ratios is the speed-up. What disturbs the machine disturbs both halves of a pair alike, so the median of
paired ratios varies several times less than a median of milliseconds. Pairs are added until the 95 % interval is narrow
enough or the time budget ends; an interval still too wide is flagged as noisy.

The bench's process holds a lock for the whole machine while it times, is pinned to cores that workers keep off, collects
no garbage while timing, and dies alone when a runtime crashes.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
from filelock import FileLock
from loky import ProcessPoolExecutor
from loky.process_executor import TerminatedWorkerError
from scipy.stats import quantile_test

from ..errors import EvaluationError
from .runtime import Session, get_runtime
from .target import Target

BLOCK_SECONDS = 0.01
"""Duration of one block of inferences: long enough for caches to hold the block's model and for one undisturbed run."""

WARM_UP_SECONDS = 0.1
PAIRS_BETWEEN_LOOKS = 24
"""Pairs before the interval is looked at, and between looks; every look costs the honesty of the interval a little."""

MAX_PAIRS = 2000
RELATIVE_HALF_WIDTH = 0.01
"""Pairs are added until the 95 % interval of the ratio is within this much of its median on either side."""

LOCK_FILE = Path(tempfile.gettempdir()) / "slimfront-bench.lock"
"""One bench times at once on a machine; an flock, which the kernel releases when its holder dies."""


@dataclass(frozen=True)
class PairedTiming:
    """A candidate timed against the reference.

    Attributes:
        speedup, low, high: median of the paired ratios reference / candidate, and its 95 % interval.
        candidate_ms, reference_ms: medians of the blocks of this session, one batch; as noisy as the machine was.
        pairs: how many pairs.
        noisy: the interval stayed wider than `RELATIVE_HALF_WIDTH`.
    """

    speedup: float
    low: float
    high: float
    candidate_ms: float
    reference_ms: float
    pairs: int
    noisy: bool


def bench_cores(threads: int) -> list[int]:
    """The cores the bench is pinned to: the last `threads` of those this process may use."""
    return sorted(os.sched_getaffinity(0))[-threads:]


def worker_cores(threads: int) -> list[int]:
    """The cores left for other work; all of them where the bench leaves none."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[:-threads] or cores


class Bench:
    """Times artifacts of one target against one reference. Start it before pinning workers elsewhere; close it at the end.

    Args:
        target: where artifacts run.
        reference: the uncompressed model's artifact.
        inputs: one batch, float32, shape [batch, ...].
        cores: to pin to, from `bench_cores`.
    """

    def __init__(self, target: Target, reference: Path, inputs: np.ndarray, cores: Sequence[int]) -> None:
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

    def time(self, candidate: Path, seconds: float = 1.0) -> PairedTiming:
        """Time `candidate` against the reference for at most about `seconds`.

        Raises:
            EvaluationError: the runtime crashed the bench's process; the next call starts a fresh one.
            LoweringError: the runtime refuses the artifact.
        """
        return self._call(_time_pair, str(candidate), seconds)

    def time_reference(self, seconds: float = 1.0) -> tuple[float, float, float, int]:
        """Median, 95 % interval and number of blocks of the reference's latency in milliseconds, one batch."""
        return self._call(_time_reference, seconds)

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
    target: Target
    reference: Session
    inputs: np.ndarray


_state: _State


def _set_up(target_json: str, reference: str, inputs: np.ndarray, cores: list[int], parent: int) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle; it ends this process
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.sched_setaffinity(0, cores)  # before the runtime starts its threads, which inherit it
    target = Target.model_validate_json(target_json)
    session = get_runtime(target.runtime).load(Path(reference), target)
    _state = _State(target, session, inputs)


def _end_with(parent: int) -> None:
    """End this process, and so its hold of the machine, when `parent` was killed and could not end it.

    It may have been killed before this process had started.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _time_pair(candidate: str, seconds: float) -> PairedTiming:
    session = get_runtime(_state.target.runtime).load(Path(candidate), _state.target)
    with _quiet():
        return paired_timing(lambda: session.run(_state.inputs), lambda: _state.reference.run(_state.inputs), seconds)


def _time_reference(seconds: float) -> tuple[float, float, float, int]:
    def run() -> object:
        return _state.reference.run(_state.inputs)

    with _quiet():
        count = _warm_up(run)
        deadline = time.perf_counter() + seconds
        samples = [_block(run, count)]
        while len(samples) < PAIRS_BETWEEN_LOOKS or (time.perf_counter() < deadline and len(samples) < MAX_PAIRS):
            samples.append(_block(run, count))
    low, high = median_interval(samples)
    return statistics.median(samples) * 1e3, low * 1e3, high * 1e3, len(samples)


def paired_timing(candidate: Callable[[], object], reference: Callable[[], object], seconds: float) -> PairedTiming:
    """Time two callables alternately; see the module's description of the protocol."""
    counts = _warm_up(candidate), _warm_up(reference)
    deadline = time.perf_counter() + seconds
    pairs: list[tuple[float, float]] = []
    while True:
        for _ in range(PAIRS_BETWEEN_LOOKS // 2):
            # A B then B A: a drift of the machine favours neither side.
            pairs.append((_block(candidate, counts[0]), _block(reference, counts[1])))
            second = _block(reference, counts[1])
            pairs.append((_block(candidate, counts[0]), second))
        timing = _summarise(pairs)
        if not timing.noisy or time.perf_counter() > deadline or len(pairs) >= MAX_PAIRS:
            return timing


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the median by order statistics (Conover 1999, section 3.2)."""
    interval = quantile_test(samples, p=0.5).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def _summarise(pairs: Sequence[tuple[float, float]]) -> PairedTiming:
    ratios = [reference / candidate for candidate, reference in pairs]
    speedup = statistics.median(ratios)
    low, high = median_interval(ratios)
    return PairedTiming(
        speedup,
        low,
        high,
        candidate_ms=statistics.median(candidate for candidate, _ in pairs) * 1e3,
        reference_ms=statistics.median(reference for _, reference in pairs) * 1e3,
        pairs=len(pairs),
        noisy=max(high - speedup, speedup - low) > RELATIVE_HALF_WIDTH * speedup,
    )


def _warm_up(run: Callable[[], object]) -> int:
    """Run until caches and clocks have settled; returns how many runs fill a block."""
    start = time.perf_counter()
    runs = 0
    while runs < 3 or time.perf_counter() - start < WARM_UP_SECONDS:
        run()
        runs += 1
    per_run = (time.perf_counter() - start) / runs
    return max(3, round(BLOCK_SECONDS / per_run))


def _block(run: Callable[[], object], count: int) -> float:
    """Seconds of the fastest of `count` runs: what a machine does to a program only ever makes it slower."""
    fastest = math.inf
    for _ in range(count):
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


class _quiet:
    """Alone on the machine's bench, with the garbage collector off."""

    def __enter__(self) -> None:
        self._lock = FileLock(LOCK_FILE, mode=0o666)
        self._lock.acquire()
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        self._lock.release()
