"""The paired protocol: a candidate and a reference run alternately, and the ratios of their times are the measurement.

A B B A, in short blocks. The first run of a block finds the other model in the caches and does not count. The block's time
is that of the fastest other run, because disturbances only ever slow a program down. Each pair of neighbouring blocks gives
one ratio. Pairs are ranked by the total time of both halves, which favours neither, and the speed-up is the median ratio of
the fastest third: the estimate for the undisturbed machine. Pairs are added until the 95 % interval is narrow enough or the
time budget ends. Where it is far too wide then, more are added once the machine is quiet; one that is still too wide is
flagged as noisy.

Either side may be several loads of its file, of which each pair takes the next so that every load of one meets every load of
the other; what they differ by is part of the interval, see `loads`.

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

import numpy as np
from scipy.special import stdtrit

from ...core.statistics import moving_block_indices, quantile_interval
from .blocks import BLOCK_SECONDS, Run, block, warm_up
from .conditions import UNNOTED, Conditions
from .loads import levelled, widened

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
"""Pairs are added until they leave the speed-up uncertain by no more than this to either side, at 95 % confidence."""

WARM_UP_SHARE = 0.2
"""The share of the time budget that warming up one of the two may take."""

DISTURBED = 0.05
"""A reference that is slower than its quiet time by more than this (in logarithms) shows a machine that is busy with other work."""

RETIMES = 2
"""How often an uncertain figure is timed again, for as many seconds as at first."""

UNCERTAIN_HALF_WIDTH = 0.03
"""A figure is timed again where its pairs leave more than this uncertain to either side, or are fewer than `MIN_PAIRS`."""

IN_VAIN = 0.9
"""A figure whose `half_width` does not shrink to this share of what it was is not timed once more."""

Loads = Sequence[Run]
"""Runs of one file, each of a load of its own."""

Pair = tuple[list[float], list[float]]
"""Seconds of the single runs of a candidate's block and of the reference's block next to it."""


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
        half_width: how far the interval reaches to the wider side, relative, without what loads differ by, which no more pairs
            would narrow.
        candidate_ms, reference_ms: medians of the blocks of the calmest pairs; as noisy as the machine was.
        pairs: how many pairs.
        noisy: `half_width` stayed above `RELATIVE_HALF_WIDTH`, or there were fewer than `MIN_PAIRS`.
        percentiles: 50, 90, 99 -> that percentile of the candidate's single runs, disturbances and all.
        runs: how many single runs the percentiles are of.
        began, ended: Unix time while the bench was held for it; 0 where it was not made on a bench.
        conditions: of the machine, as far as the bench noted them.
        shapes: what it is the weighted mean of, where it was timed at several shapes of the inputs; else empty.
    """

    speedup: float
    low: float
    high: float
    candidate_ms: float
    reference_ms: float
    half_width: float
    pairs: int
    noisy: bool
    percentiles: dict[int, Percentile]
    runs: int
    began: float = 0.0
    ended: float = 0.0
    conditions: Conditions = UNNOTED
    shapes: tuple[ShapeTiming, ...] = ()

    @property
    def conservative_speedup(self) -> float:
        """What the figure counts as: the speed-up, or the lower end of its interval where it is uncertain.

        A figure that says little can so neither take a front nor draw a sampler to its policy.
        """
        return self.low if self.is_uncertain else self.speedup

    @property
    def is_uncertain(self) -> bool:
        """Whether it is so noisy that it has to be timed again before it counts in full."""
        return self.half_width > UNCERTAIN_HALF_WIDTH or self.pairs < MIN_PAIRS


@dataclass(frozen=True)
class ShapeTiming:
    """The timing at one of several shapes, what measurements call it, and its weight in their mean."""

    shape: str
    weight: float
    timing: PairedTiming


def paired_timing(
    candidate: Loads,
    reference: Loads,
    seconds: float,
    calm_reference_s: float = math.inf,
    settle: Callable[[], object] | None = None,
) -> PairedTiming:
    """Time loads of two files alternately for about `seconds`, warming up included; see the module's description.

    However slow they are, each side is warmed up by two runs and timed in two blocks. Loads have run before.

    Args:
        calm_reference_s: the quiet time of the reference on this machine, by which a disturbed machine is recognised.
        settle: returns when the machine is quiet, or after its patience. With it, an uncertain figure is timed again at
            most `RETIMES` times. All pairs are kept, of which the calmest count.
    """
    blocks: list[Pair] = []
    sides = candidate, reference
    timing = _more_pairs(blocks, sides, seconds, calm_reference_s)
    for _ in range(RETIMES):
        if settle is None or not timing.is_uncertain:
            break
        settle()
        before, timing = timing, _more_pairs(blocks, sides, seconds, calm_reference_s)
        if timing.half_width > IN_VAIN * before.half_width:
            break
    return timing


def _more_pairs(
    blocks: list[Pair], sides: tuple[Loads, Loads], seconds: float, calm_reference_s: float
) -> PairedTiming:
    """Add pairs to `blocks` until they are enough, or the time is over; what all of them say."""
    deadline = time.perf_counter() + seconds
    counts = [_runs_in_block(warm_up(loads[0], seconds * WARM_UP_SHARE), seconds) for loads in sides]
    of_a_side = len(sides[0]), len(sides[1])
    while True:
        for order in ((0, 1), (1, 0)):  # A B then B A: a drift of the machine favours neither side
            chosen = _loads_of_pair(len(blocks), of_a_side)
            pair = {which: block(sides[which][chosen[which]], counts[which]) for which in order}
            blocks.append((pair[0], pair[1]))
        over = time.perf_counter() >= deadline or len(blocks) >= MAX_PAIRS
        if over or len(blocks) % PAIRS_BETWEEN_LOOKS == 0:
            timing = _summarise(blocks, of_a_side, calm_reference_s)
            if over or not timing.noisy:
                return timing


def _loads_of_pair(index: int, of_a_side: tuple[int, int]) -> tuple[int, int]:
    """Which load of the candidate and which of the reference a pair is of; every one meets every other in turn."""
    candidates, references = of_a_side
    return index % candidates, index // candidates % references


def reference_timing(reference: Loads, seconds: float) -> tuple[float, float, float, int]:
    """Median of the calmest blocks of one file's loads in seconds, its 95 % interval, and how many blocks they are.

    The interval holds how much one load of a file differs from the next.
    """
    fastest = fastest_blocks(reference, seconds)
    level, variance = levelled(np.array(fastest), np.arange(len(fastest)) % len(reference), CALM_SHARE)
    calm = sorted(level.tolist())[: _calm_count(len(level))]
    median = statistics.median(calm)
    return median, *widened(median, *quantile_interval(calm), variance), len(calm)


def fastest_blocks(loads: Loads, seconds: float) -> list[float]:
    """Seconds of the fastest run of each block that fits into `seconds`, of the loads in turn; two blocks at least."""
    deadline = time.perf_counter() + seconds
    count = _runs_in_block(warm_up(loads[0], seconds * WARM_UP_SHARE), seconds)
    fastest: list[float] = []
    while len(fastest) < 2 or (time.perf_counter() < deadline and len(fastest) < MAX_PAIRS):
        fastest.append(min(block(loads[len(fastest) % len(loads)], count)))
    return fastest


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
    bootstrap).
    """
    count = len(pairs)
    drawn = moving_block_indices(count, min(4, count))
    ratio = float(calm_ratio(pairs))
    half = float(stdtrit(max(_calm_count(count) - 1, 1), 0.975) * np.log(calm_ratio(pairs[drawn])).std())
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def _summarise(blocks: Sequence[Pair], of_a_side: tuple[int, int], calm_reference_s: float) -> PairedTiming:
    pairs, variance = _levelled_pairs(blocks, of_a_side)
    candidate_s, reference_s = np.median(pairs[_calmest(pairs)], axis=0)
    slowdown = math.log(reference_s) - math.log(calm_reference_s)
    ratio, low, high = calm_interval(pairs)
    # On the quiet machine the candidate is no slower than it ever was here: a disturbance only ever makes it slower.
    seen = min(ratio, calm_reference_s / pairs[:, 0].min())
    by_pairs, (low, high) = (
        _disturbed(*widened(ratio, low, high, more), widened(seen, seen, seen, more)[0], slowdown)
        for more in (0.0, variance)
    )
    half_width = max(by_pairs[1] / ratio, ratio / by_pairs[0]) - 1
    single = [seconds * 1e3 for candidate, _ in blocks for seconds in candidate]
    return PairedTiming(
        speedup=ratio,
        low=low,
        high=high,
        candidate_ms=float(candidate_s) * 1e3,
        reference_ms=float(reference_s) * 1e3,
        half_width=half_width,
        pairs=len(pairs),
        noisy=half_width > RELATIVE_HALF_WIDTH or len(pairs) < MIN_PAIRS,
        percentiles={percent: _percentile(single, percent) for percent in (50, 90, 99)},
        runs=len(single),
    )


def _disturbed(low: float, high: float, seen: float, slowdown: float) -> tuple[float, float]:
    """An interval where the reference was slower than on the quiet machine by `slowdown`, a logarithm."""
    return (max(low * math.exp(-slowdown), seen), high * math.exp(slowdown)) if slowdown > DISTURBED else (low, high)


def _levelled_pairs(blocks: Sequence[Pair], of_a_side: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Seconds of (candidate, reference), shape [pairs, 2], without what loads differ by, and the variance which that leaves."""
    fastest = np.array([(min(candidate), min(reference)) for candidate, reference in blocks])
    loads = np.array([_loads_of_pair(index, of_a_side) for index in range(len(blocks))])
    sides = [levelled(fastest[:, side], loads[:, side], CALM_SHARE) for side in (0, 1)]
    return np.stack([seconds for seconds, _ in sides], axis=1), sum(variance for _, variance in sides)


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
