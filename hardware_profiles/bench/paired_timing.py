"""The paired protocol: a candidate and a reference run alternately, and the ratios of their times are the measurement.

A B B A, in short blocks. The first run of a block finds the other model in the caches and does not count. The block's time
is that of the fastest other run, because disturbances only ever slow a program down. Each pair of neighbouring blocks gives
one ratio. Pairs are ranked by the total time of both halves, which favours neither, and the speed-up is the median ratio of
the fastest third: the estimate for the undisturbed machine. Pairs are added until the 95 % interval is narrow enough or the
time budget ends. Where it is far too wide then, more are added once the machine is quiet; one that is still too wide is
flagged as noisy.

A neighbour that needs the memory slows a model that needs it too, often the reference, and not one that fits the caches:
the ratio of two disturbed times is wrong by up to the whole disturbance, and pairs that are all disturbed agree on it. The
reference's quiet time shows how far it is disturbed, and the interval is widened by that much.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.special import stdtrit

from ...core.statistics import NORMAL_QUANTILE, moving_block_indices, quantile_interval
from .conditions import UNNOTED, Conditions

BLOCK_SECONDS = 0.01
"""The duration of one block of inferences in seconds, long enough for one undisturbed run."""

MIN_RUNS = 3
"""The fewest runs of a block, not counting the first, however slow the model is."""

MIN_PAIRS = 12
"""The fewest pairs of which a spread is estimated; a budget that does not allow them ends in a figure flagged as noisy."""

PAIRS_BETWEEN_LOOKS = 24
"""The number of pairs between two looks at the interval; every look lowers its coverage a little."""

MAX_PAIRS = 1000
CALM_SHARE = 1 / 3
"""The share of the pairs, the fastest, from which the speed-up is computed."""

RELATIVE_HALF_WIDTH = 0.015
"""Pairs are added until the 95 % interval of the speed-up is within this much of it on either side."""

WARM_UP_SHARE = 0.2
"""The share of the time budget that warming up one of the two may take."""

LOADING_SPREAD = 0.006
"""The relative standard deviation between loads of one artifact on a quiet machine, which more pairs do not reduce;
`benchmarks/measuring/latency_truth.py` measures the coverage of intervals that include it."""

DISTURBED = 0.05
"""A reference that is slower than its quiet time by more than this (in logarithms) shows a machine that is busy with other work."""

RETIMES = 2
"""How often an uncertain figure is timed again, for as many seconds as at first."""

UNCERTAIN_HALF_WIDTH = 0.03
"""A figure is timed again where its interval reaches farther than this to either side, or it has fewer than `MIN_PAIRS`."""

IN_VAIN = 0.9
"""A figure whose interval is not narrowed to this share of its width is not timed once more."""

Run = Callable[[], object]

Pair = tuple[list[float], list[float]]
"""Seconds of the single runs of a candidate's block and of the reference's block next to it."""


@runtime_checkable
class SelfTimed(Protocol):
    """A run on a device that has a clock of its own, such as the events of a GPU."""

    def __call__(self) -> object: ...

    def seconds(self) -> float:
        """Run once; how long the device took."""
        ...


@dataclass(frozen=True)
class Percentile:
    """A percentile of single runs in milliseconds with its 95 % interval by order statistics."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTiming:
    """A candidate timed against the reference.

    Attributes:
        speedup, low, high: reference / candidate on the quiet machine, and its 95 % interval; of a machine that was disturbed
            all the time it holds what both an undisturbed and a doubly disturbed candidate would have.
        candidate_ms, reference_ms: medians of the blocks of the calmest pairs; as noisy as the machine was.
        pairs: how many pairs.
        noisy: the interval stayed wider than `RELATIVE_HALF_WIDTH`, or there were fewer than `MIN_PAIRS`.
        percentiles: 50, 90, 99 -> that percentile of the candidate's single runs, disturbances and all.
        runs: how many single runs the percentiles are of.
        began, ended: Unix time while the bench was held for it; 0 where it was not made on a bench.
        conditions: of the machine, as far as the bench noted them.
    """

    speedup: float
    low: float
    high: float
    candidate_ms: float
    reference_ms: float
    pairs: int
    noisy: bool
    percentiles: dict[int, Percentile]
    runs: int
    began: float = 0.0
    ended: float = 0.0
    conditions: Conditions = UNNOTED

    @property
    def conservative_speedup(self) -> float:
        """What the figure counts as: the speed-up, or the lower end of its interval where it is uncertain.

        A figure that says little can so neither take a front nor draw a sampler to its policy.
        """
        return self.low if self.is_uncertain else self.speedup

    @property
    def spread(self) -> float:
        """Width of the interval, as a difference of logarithms."""
        return math.log(self.high / self.low)

    @property
    def is_uncertain(self) -> bool:
        """Whether it is so noisy that it has to be timed again before it counts in full."""
        wide = max(self.high / self.speedup, self.speedup / self.low) - 1 > UNCERTAIN_HALF_WIDTH
        return wide or self.pairs < MIN_PAIRS


def paired_timing(
    candidate: Run,
    reference: Run,
    seconds: float,
    calm_reference_s: float = math.inf,
    settle: Callable[[], object] | None = None,
) -> PairedTiming:
    """Time two callables alternately for about `seconds`, warming up included; see the module's description.

    However slow they are, each is warmed up by two runs and timed in two blocks.

    Args:
        calm_reference_s: the quiet time of the reference on this machine, by which a disturbed machine is recognised.
        settle: returns when the machine is quiet, or after its patience. With it, an uncertain figure is timed again at
            most `RETIMES` times. All pairs are kept, of which the calmest count.
    """
    blocks: list[Pair] = []
    timing = _more_pairs(blocks, candidate, reference, seconds, calm_reference_s)
    for _ in range(RETIMES):
        if settle is None or not timing.is_uncertain:
            break
        settle()
        before, timing = timing, _more_pairs(blocks, candidate, reference, seconds, calm_reference_s)
        if timing.spread > IN_VAIN * before.spread:
            break
    return timing


def _more_pairs(
    blocks: list[Pair], candidate: Run, reference: Run, seconds: float, calm_reference_s: float
) -> PairedTiming:
    """Add pairs to `blocks` until they are enough, or the time is over; what all of them say."""
    deadline = time.perf_counter() + seconds
    runs = candidate, reference
    counts = [_runs_in_block(warm_up(run, seconds * WARM_UP_SHARE), seconds) for run in runs]
    while True:
        for order in ((0, 1), (1, 0)):  # A B then B A: a drift of the machine favours neither side
            pair = {which: _block(runs[which], counts[which]) for which in order}
            blocks.append((pair[0], pair[1]))
        over = time.perf_counter() >= deadline or len(blocks) >= MAX_PAIRS
        if over or len(blocks) % PAIRS_BETWEEN_LOOKS == 0:
            timing = _summarise(blocks, calm_reference_s)
            if over or not timing.noisy:
                return timing


def reference_timing(run: Run, seconds: float) -> tuple[float, float, float, int]:
    """Median of the calmest blocks of one run in seconds, its 95 % interval, and how many blocks they are.

    The interval holds how much one load of a file differs from the next.
    """
    blocks = sorted(fastest_blocks(run, seconds))
    calm = blocks[: _calm_count(len(blocks))]
    low, high = quantile_interval(calm)
    spread = math.exp(NORMAL_QUANTILE * LOADING_SPREAD)
    return statistics.median(calm), low / spread, high * spread, len(calm)


def fastest_blocks(run: Run, seconds: float) -> list[float]:
    """Seconds of the fastest run of each block that fits into `seconds`, warming up included; two blocks at least."""
    deadline = time.perf_counter() + seconds
    count = _runs_in_block(warm_up(run, seconds * WARM_UP_SHARE), seconds)
    fastest: list[float] = []
    while len(fastest) < 2 or (time.perf_counter() < deadline and len(fastest) < MAX_PAIRS):
        fastest.append(min(_block(run, count)))
    return fastest


def warm_up(run: Run, seconds: float) -> float:
    """Run until a stretch is no faster than the one before it, for at most about `seconds`; returns seconds of a run."""
    deadline = time.perf_counter() + seconds
    stretch = BLOCK_SECONDS * 2
    previous, latest = _stretch(run, stretch), _stretch(run, stretch)
    while latest < 0.98 * previous and time.perf_counter() < deadline:
        previous, latest = latest, _stretch(run, stretch)
    return latest


def calm_ratio(pairs: np.ndarray) -> np.ndarray:
    """Median of reference / candidate over the calmest pairs.

    Args:
        pairs: seconds of (candidate, reference), shape [..., pairs, 2].

    Returns:
        Shape [...].
    """
    ratios = np.log(pairs[..., 1] / pairs[..., 0])  # so that swapping the sides inverts the median of an even count too
    return np.exp(np.median(np.take_along_axis(ratios, _calmest(pairs), axis=-1), axis=-1))


def calm_interval(pairs: np.ndarray) -> tuple[float, float, float]:
    """`calm_ratio` of pairs, shape [pairs, 2], with its 95 % interval.

    Neighbouring pairs are correlated, because a disturbance outlasts a pair: they are resampled in blocks (moving-block
    bootstrap). The variation between two loads of an artifact is added.
    """
    count = len(pairs)
    drawn = moving_block_indices(count, min(4, count))
    ratio = float(calm_ratio(pairs))
    sampling = float(stdtrit(max(_calm_count(count) - 1, 1), 0.975) * np.log(calm_ratio(pairs[drawn])).std())
    half = math.hypot(sampling, NORMAL_QUANTILE * LOADING_SPREAD)
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def _summarise(blocks: Sequence[Pair], calm_reference_s: float) -> PairedTiming:
    pairs = np.array([(min(candidate), min(reference)) for candidate, reference in blocks])
    candidate_s, reference_s = np.median(pairs[_calmest(pairs)], axis=0)
    slowdown = math.log(reference_s) - math.log(calm_reference_s)
    ratio, low, high = calm_interval(pairs)
    if slowdown > DISTURBED:
        # On the quiet machine the candidate is no slower than it ever was here: a disturbance only ever makes it slower.
        seen = min(ratio, calm_reference_s / pairs[:, 0].min()) * math.exp(-NORMAL_QUANTILE * LOADING_SPREAD)
        low, high = max(low * math.exp(-slowdown), seen), high * math.exp(slowdown)
    single = [seconds * 1e3 for candidate, _ in blocks for seconds in candidate]
    wide = max(high / ratio, ratio / low) - 1 > RELATIVE_HALF_WIDTH
    return PairedTiming(
        speedup=ratio,
        low=low,
        high=high,
        candidate_ms=float(candidate_s) * 1e3,
        reference_ms=float(reference_s) * 1e3,
        pairs=len(pairs),
        noisy=wide or len(pairs) < MIN_PAIRS,
        percentiles={percent: _percentile(single, percent) for percent in (50, 90, 99)},
        runs=len(single),
    )


def _percentile(samples: Sequence[float], percent: int) -> Percentile:
    value = float(np.percentile(samples, percent))
    low, high = quantile_interval(samples, percent / 100)
    return Percentile(value, min(low, value), max(high, value))


def _calmest(pairs: np.ndarray) -> np.ndarray:
    """Indices of the calmest pairs, shape [..., calm]."""
    slowness = pairs[..., 0] * pairs[..., 1]
    calm = _calm_count(pairs.shape[-2])
    return np.argpartition(slowness, calm - 1, axis=-1)[..., :calm]


def _calm_count(pairs: int) -> int:
    return min(pairs, max(MIN_PAIRS // 2, round(pairs * CALM_SHARE)))


def _runs_in_block(seconds_per_run: float, budget: float) -> int:
    """The number of runs that fill a block, at least `MIN_RUNS` and the first; fewer where the budget does not allow `MIN_PAIRS` blocks."""
    wanted = 1 + max(MIN_RUNS, round(BLOCK_SECONDS / seconds_per_run))
    room = int(budget * (1 - 2 * WARM_UP_SHARE) / (2 * MIN_PAIRS) / seconds_per_run)
    return max(1, min(wanted, room))


def _stretch(run: Run, seconds: float) -> float:
    """Seconds of the fastest run in a stretch of `seconds`."""
    end = time.perf_counter() + seconds
    fastest = math.inf
    while True:
        fastest = min(fastest, *_block(run, 1))
        if time.perf_counter() >= end:
            return fastest


def _block(run: Run, count: int) -> list[float]:
    """Seconds of each of `count` runs without the first, which only counts where it is the only one."""
    if isinstance(run, SelfTimed):
        seconds = [run.seconds() for _ in range(count)]
    else:
        seconds = [_wall_seconds(run) for _ in range(count)]
    return seconds[1:] or seconds


def _wall_seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
