"""The paired protocol on a clock that only moves when something runs: nothing here depends on how fast the machine is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slimfront.hardware_profiles.bench import blocks, several_loads
from slimfront.hardware_profiles.bench import paired_timing as module
from slimfront.hardware_profiles.bench.blocks import Run, warm_up
from slimfront.hardware_profiles.bench.loads import LOADING_SPREAD
from slimfront.hardware_profiles.bench.paired_timing import (
    PAIRS_BETWEEN_LOOKS,
    PairedTiming,
    calm_interval,
    calm_ratio,
    fastest_blocks,
    reference_timing,
)
from slimfront.hardware_profiles.bench.several_loads import Loader


class Clock:
    """Stands for the machine's clock; the code that runs moves it on."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def taking(self, milliseconds: float | Callable[[], float]) -> Callable[[], None]:
        """A callable that takes so long."""

        def run() -> None:
            self.now += (milliseconds() if callable(milliseconds) else milliseconds) / 1e3

        return run


class OnDevice:
    """A run on a device that is through in `milliseconds`, while the machine's clock goes on by ten times as much."""

    def __init__(self, clock: Clock, milliseconds: float) -> None:
        self.clock, self.milliseconds = clock, milliseconds

    def __call__(self) -> None:
        self.clock.now += self.milliseconds / 100

    def seconds(self) -> float:
        self()
        return self.milliseconds / 1e3


def paired_timing(candidate: Run, reference: Run, *arguments: Any, **more: Any) -> PairedTiming:
    """A timing of one load of each."""
    return module.paired_timing([candidate], [reference], *arguments, **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for timed in (module, blocks):
        monkeypatch.setattr(timed, "time", made)
    return made


def test_a_device_is_timed_by_its_own_clock(clock):
    timing = paired_timing(OnDevice(clock, 0.5), OnDevice(clock, 2), 1.0)
    assert timing.speedup == pytest.approx(4)
    assert (timing.candidate_ms, timing.reference_ms) == (pytest.approx(0.5), pytest.approx(2))
    assert set(fastest_blocks([OnDevice(clock, 3)], 0.2)) == {0.003}


def test_a_steady_machine_by_hand(clock):
    timing = paired_timing(clock.taking(0.5), clock.taking(1.5), 1.0)
    assert timing.speedup == pytest.approx(3)
    assert (timing.candidate_ms, timing.reference_ms) == (pytest.approx(0.5), pytest.approx(1.5))
    # No spread but what is expected to differ between loads of each side: 1.96 x 1.3 % x the square root of 2.
    assert (timing.low, timing.high) == (
        pytest.approx(3 * math.exp(-0.036034), rel=1e-4),
        pytest.approx(3 * math.exp(0.036034), rel=1e-4),
    )
    assert timing.half_width == pytest.approx(0, abs=1e-9)
    assert (timing.pairs, timing.noisy) == (PAIRS_BETWEEN_LOOKS, False)
    assert [timing.percentiles[p].value for p in (50, 90, 99)] == pytest.approx([0.5] * 3)
    assert timing.runs == PAIRS_BETWEEN_LOOKS * 20  # so many fill a block of 10 ms; one before them does not count


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "most"),
    [(0.01, 0.5, 0.55), (10, 0.5, 0.55), (100, 0.5, 1.0), (100, 3, 3.3), (700, 1, 5.6)],
)
def test_the_time_budget_holds_however_slow_the_models(milliseconds, seconds, most, clock):
    noise = np.random.default_rng(0)
    shaky = lambda: milliseconds * noise.uniform(1, 2)  # noqa: E731
    timing = paired_timing(clock.taking(shaky), clock.taking(milliseconds), seconds)
    # Two runs of each to warm up and A B B A are the least that is done.
    assert clock.now <= max(most, (4 + 4) * 1.5 * milliseconds / 1e3)
    assert timing.pairs >= 2


def test_a_figure_of_few_pairs_says_that_it_is_noisy(clock):
    assert paired_timing(clock.taking(100), clock.taking(200), 1.0).noisy
    assert not paired_timing(clock.taking(100), clock.taking(200), 10.0).noisy


def test_the_first_run_of_a_block_finds_the_other_model_in_the_caches_and_does_not_count(clock):
    last = ""

    def cold_after_another(name: str, milliseconds: float) -> Callable[[], None]:
        def run() -> None:
            nonlocal last
            clock.now += milliseconds / 1e3 * (1 if last == name else 1.5)
            last = name

        return run

    for slow in (4, 11):
        timing = paired_timing(cold_after_another("A", slow), cold_after_another("B", 10), 2.0)
        assert timing.speedup == pytest.approx(10 / slow)
        assert timing.percentiles[99].value == pytest.approx(slow)


def test_candidate_and_reference_alternate(clock):
    order = []

    def mark(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock.now += 0.004

        return run

    timing = paired_timing(mark("A"), mark("B"), 1.0)
    blocks = [name for name, _ in itertools.groupby(order)]
    assert timing.pairs == PAIRS_BETWEEN_LOOKS
    # Behind the warm-up A B; a reversal joins two blocks: A, BB, AA, BB, ...
    assert blocks == ["A", "B"] + ["A", "B"] * (PAIRS_BETWEEN_LOOKS // 2) + ["A"] * 1
    assert order.count("A") == order.count("B")


def test_disturbances_that_last_and_favour_one_side_do_not_move_the_speedup(clock):
    """A neighbour halves the speed for 40 ms at a time and hits the reference harder; the calm pairs do not see it."""
    neighbour = lambda hurt: lambda base: base * (hurt if int(clock.now / 0.04) % 2 else 1)  # noqa: E731
    candidate, reference = neighbour(1.8), neighbour(2.4)
    timing = paired_timing(clock.taking(lambda: candidate(0.4)), clock.taking(lambda: reference(0.8)), 2.0)
    assert timing.speedup == pytest.approx(2)
    assert timing.percentiles[90].value == pytest.approx(0.72)  # single runs tell of the neighbour


def test_a_reference_slower_than_on_the_quiet_machine_widens_the_interval_by_its_slowdown(clock):
    calm = paired_timing(clock.taking(1), clock.taking(2), 1.0, calm_reference_s=0.002)
    disturbed = paired_timing(clock.taking(1), clock.taking(2), 1.0, calm_reference_s=0.001)
    assert (calm.noisy, disturbed.noisy) == (False, True)
    assert disturbed.speedup == pytest.approx(calm.speedup)
    assert disturbed.high / calm.high == pytest.approx(2)
    assert calm.low / disturbed.low == pytest.approx(2)


@given(st.floats(1, 3), st.floats(1, 3), st.floats(0.2, 20))
def test_an_interval_of_a_disturbed_machine_holds_the_quiet_speedup(hurt, more, speedup):
    """Whichever of the two a neighbour slows, neither more than twice as much (in logarithms) as the reference."""
    reference_hurt, candidate_hurt = max(hurt, more), min(hurt, more)
    with pytest.MonkeyPatch.context() as patched:
        clock = Clock()
        for timed in (module, blocks):
            patched.setattr(timed, "time", clock)
        candidate, reference = clock.taking(candidate_hurt / speedup), clock.taking(reference_hurt)
        timing = paired_timing(candidate, reference, 0.5, calm_reference_s=0.001)
    if reference_hurt > math.exp(module.DISTURBED):
        assert timing.low <= speedup <= timing.high
        assert timing.noisy
        assert timing.conservative_speedup <= speedup


def test_the_fastest_run_of_a_disturbed_candidate_bounds_its_interval(clock):
    """A neighbour slows every run of the reference fourfold, and most of the candidate's: one block of it was undisturbed."""
    blocks = itertools.count()
    candidate = lambda: 0.5 if 60 < next(blocks) < 80 else 2.0  # noqa: E731
    timing = paired_timing(clock.taking(candidate), clock.taking(8), 2.0, calm_reference_s=0.002)
    assert timing.low == pytest.approx(
        4 * math.exp(-0.036034)
    )  # 2 ms of the quiet reference over 0.5, less what loads differ by


def busy_until(clock: Clock, end: float, generator: np.random.Generator) -> tuple[Callable, Callable]:
    """A candidate of 0.5 ms and a reference of 1 ms, next to a neighbour that takes the core away from them until `end`."""
    slowed = lambda base: lambda: base * (generator.uniform(1, 40) if clock.now < end else 1)  # noqa: E731
    return clock.taking(slowed(0.5)), clock.taking(slowed(1.0))


def test_an_uncertain_figure_is_timed_again_once_the_machine_is_quiet(clock):
    def settle() -> None:
        clock.now = max(clock.now, 20.0)

    alone = paired_timing(*busy_until(clock, 20, np.random.default_rng(0)), 1.0, 0.001)
    assert alone.is_uncertain
    clock.now = 0.0
    again = paired_timing(*busy_until(clock, 20, np.random.default_rng(0)), 1.0, 0.001, settle)
    assert again.speedup == pytest.approx(2)
    assert not again.is_uncertain
    assert again.pairs > alone.pairs  # none is thrown away: the calmest count
    assert again.conservative_speedup == again.speedup


def test_a_figure_that_stays_uncertain_counts_as_its_lower_end_and_costs_no_third_time(clock):
    settled = itertools.count()
    timing = paired_timing(*busy_until(clock, math.inf, np.random.default_rng(0)), 1.0, 0.001, lambda: next(settled))
    assert timing.is_uncertain
    assert timing.conservative_speedup == timing.low < 2
    assert 1 <= next(settled) <= module.RETIMES
    assert clock.now < 1.0 * (1 + module.RETIMES) * 1.5


@pytest.mark.parametrize("seed", range(5))
def test_no_figure_of_a_machine_that_is_too_busy_is_taken_for_a_faster_candidate(seed, clock):
    """The defect that made this rule: 16x of few pairs, for a candidate that is 3.5 times as fast."""
    generator = np.random.default_rng(seed)
    preempted = lambda base: lambda: base + generator.exponential(60)  # noqa: E731
    timing = paired_timing(
        clock.taking(preempted(0.24 / 3.5)), clock.taking(preempted(0.24)), 1.0, 0.00024, lambda: None
    )
    assert timing.is_uncertain
    assert timing.conservative_speedup < 3.5 < timing.high


def test_a_certain_figure_is_not_timed_again(clock):
    timing = paired_timing(clock.taking(0.5), clock.taking(1.5), 1.0, settle=pytest.fail)
    assert timing.pairs == PAIRS_BETWEEN_LOOKS


def test_the_reference_alone_is_its_calmest_blocks(clock):
    """A neighbour slows half of the blocks; the median of all would be a matter of luck."""
    slow = lambda: 0.23 * (1.6 if int(clock.now / 0.05) % 2 else 1)  # noqa: E731
    median, low, high, blocks = reference_timing([clock.taking(slow)], 2.0)
    assert median == pytest.approx(0.23e-3)
    assert low < median < high
    assert high / low == pytest.approx(math.exp(2 * 0.02548), rel=1e-3)  # what differs between loads
    assert blocks >= module.MIN_PAIRS // 2


@pytest.mark.parametrize("loads", [1, 3])
def test_the_interval_holds_the_truth_as_often_as_it_says(loads, clock):
    """40 timings of runs with a long tail, each load a little faster or slower than the last."""
    generator = np.random.default_rng(1)

    def loaded(milliseconds: float) -> Run:
        base = milliseconds * math.exp(generator.normal(0, LOADING_SPREAD))
        return clock.taking(lambda: base * (1 + generator.exponential(0.1)))

    found = []
    for _ in range(40):
        candidate, reference = ([loaded(ms) for _ in range(loads)] for ms in (0.5, 1.0))
        found.append(module.paired_timing(candidate, reference, 0.5))
    # The fastest of 20 and of 10 runs; their expectations differ a little from 2.
    truth = 2 * (1 + 0.1 / 10) / (1 + 0.1 / 20)
    assert sum(timing.low <= truth <= timing.high for timing in found) >= 34  # 90 % of 40, less two standard errors
    spread = float(np.std(np.log([timing.speedup for timing in found])))
    assert spread < 1.3 * LOADING_SPREAD * math.sqrt(2 / loads)  # loads are averaged, not the fastest taken


def test_every_load_meets_every_other_and_counts_alike(clock):
    """A load that is a tenth slower moves the speed-up by its share, although its pairs are never the calmest."""
    met = set()

    def load(name: str, milliseconds: float) -> Run:
        taking = clock.taking(milliseconds)

        def run() -> None:
            met.add((last[0], name))
            last[0] = name
            taking()

        return run

    last = [""]
    candidate = [load("a", 0.5), load("b", 0.5), load("c", 0.55)]
    timing = module.paired_timing(candidate, [load("x", 1), load("y", 1), load("z", 1)], 1.0)
    assert {(a, b) for a in "abc" for b in "xyz"} <= {(a, b) for pair in met for a, b in (pair, pair[::-1])}
    assert timing.speedup == pytest.approx(2 / 1.1 ** (1 / 3))
    assert timing.half_width == pytest.approx(0, abs=1e-9)
    alike = module.paired_timing(candidate[:2], [load("x", 1), load("y", 1)], 1.0)
    assert timing.high / timing.low > alike.high / alike.low  # what was found to differ widens it


@pytest.mark.parametrize(
    ("candidate_s", "reference_s", "runs_s", "free", "seconds", "loads"),
    [
        (0.01, 0.01, 0, 100, 1.0, 3),
        (0.09, 0.03, 0, 100, 1.0, 3),
        (0.09, 0.09, 0, 100, 1.0, 2),
        (0.09, 0.09, 0, 100, 2.0, 3),
        (0.3, 0.3, 0, 100, 2.0, 1),
        (0.01, 0.01, 0.29, 100, 2.0, 1),  # it loads fast and runs slowly
        (0.01, 0.01, 0, 50, 1.0, 2),  # each more takes 20 bytes
        (0.01, 0.01, 0, 39, 1.0, 1),
    ],
)
def test_files_are_loaded_again_where_that_is_cheap_and_there_is_room_and_time(
    candidate_s, reference_s, runs_s, free, seconds, loads, clock, monkeypatch, tmp_path
):
    for name in ("candidate", "reference"):
        (tmp_path / name).write_bytes(b"1")
    taken = [0]

    def load(file: Path) -> object:
        clock.now += candidate_s if file.name == "candidate" else reference_s
        taken[0] += 10
        return object()

    def warm(_: object) -> None:
        clock.now += runs_s

    room = SimpleNamespace(taken=lambda: taken[0], free=lambda: free - taken[0] + 10)
    monkeypatch.setattr(several_loads, "time", clock)
    found = Loader(load, warm, room).several(tmp_path / "candidate", tmp_path / "reference", "kept", seconds)
    candidates, references, left = found
    assert (len(candidates), len(references), references[0]) == (loads, loads, "kept")
    assert len({*candidates, *references}) == 2 * loads
    assert left == pytest.approx(seconds - (loads - 1) * (candidate_s + reference_s + 2 * runs_s))
    assert left >= 0.75 * seconds


def test_warming_up_ends_when_runs_get_no_faster(clock):
    times = iter([50.0, 40, 30, 20, 10, 10, 10, 10, 10, 10, 10, 10])
    assert warm_up(clock.taking(lambda: next(times)), 10) == pytest.approx(0.01)
    assert len(list(times)) >= 2
    forever = (1000 * 0.9**index for index in itertools.count())
    warm_up(clock.taking(lambda: next(forever)), 5)
    assert next(forever) > 100  # it gave up after its time


def test_blocks_of_the_reference_alone(clock):
    milliseconds = itertools.cycle([3.0, 2.0, 4.0])
    blocks = fastest_blocks([clock.taking(lambda: next(milliseconds))], 0.5)
    assert set(np.round(blocks, 9)) == {0.002}
    assert clock.now == pytest.approx(0.5, abs=0.05)
    assert len(fastest_blocks([clock.taking(900)], 0.5)) == 2


def test_the_calm_ratio_by_hand():
    # Four undisturbed pairs with ratios 2, 2, 2.1, 1.9 and two half so fast are a third of all; the slow ones have ratio 5.
    calm = [(1, 2), (1, 2), (1, 2.1), (1, 1.9), (1.4, 2.8), (1.5, 3)]
    pairs = np.array([*[(10, 50)] * 12, *calm], float)
    assert calm_ratio(pairs) == pytest.approx(2)
    assert calm_ratio(np.stack([pairs, pairs[:, ::-1]])) == pytest.approx([2, 0.5])


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_the_interval_holds_the_ratio_and_swaps_with_the_sides(seed, count):
    pairs = np.exp(np.random.default_rng(seed).normal(0, 0.1, (count, 2)))
    ratio, low, high = calm_interval(pairs)
    assert low <= ratio <= high
    swapped, _, _ = calm_interval(pairs[:, ::-1])
    assert swapped * ratio == pytest.approx(1)
