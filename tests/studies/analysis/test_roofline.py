"""Rooflines of operations and cards with round numbers, computed by hand."""

from __future__ import annotations

import pytest
from slimfront.hardware_profiles.cards.device_card import DeviceCard, Throughput
from slimfront.hardware_profiles.cards.target import Target, load_target
from slimfront.spaces.models.operations import OTHERS, Operation
from slimfront.studies.analysis.roofline import Limits, limits, rooflines

RATES = {("conv2d", 32): 10.0, ("conv2d", 8): 40.0, ("conv2d", 16): 5.0, ("linear", 32): 2.0, ("linear", 8): 8.0}
"""(Kind of operation, bits) -> 10^9 multiply-adds a second; 16 bits are slower than float32 here."""


def target(**changes: object) -> Target:
    """Large arrays move at 1 GB/s, those of up to 1 MB at 10 GB/s; a call takes 5 us, of which an operation's own time is 2."""
    throughput = [
        Throughput(
            operation=name, weight_bits=bits, activation_bits=bits, gmac_per_s=rate, low=rate, high=rate, noisy=False
        )
        for (name, bits), rate in RATES.items()
    ]
    numbers = {"memory_gb_per_s": 1.0, "gb_per_s_by_bytes": {10**6: 10.0, 10**8: 1.0}, "dispatch_us": 5.0}
    card = DeviceCard(
        measured_at="2026-01-02T03:04:05Z", machine={}, versions={}, kernels=[], throughput=throughput, reference_ms={},
        **{**numbers, "operation_us": 2.0, **changes},
    )  # fmt: skip
    return load_target("cpu-openvino").model_copy(update={"measured": card})


CONV = Operation("conv", "conv2d", 4_000_000, 1_000, 9_000)
"""In float32: 400 us of arithmetic; 40 kB, 4 us of memory."""

FC = Operation("fc", "linear", 100_000, 100_000, 1_000)
"""In float32: 50 us of arithmetic; 404 kB, 40.4 us of memory."""

REST = Operation(OTHERS, "linear", 0, 0, 5_000, count=10)
"""20 kB, 2 us of memory; 20 us of dispatch."""


def test_an_operation_takes_its_dispatch_and_the_longer_of_arithmetic_and_memory() -> None:
    found = rooflines([CONV, FC, REST], target())["float32"]
    conv, fc, rest = found.bounds
    assert (conv.arithmetic_us, conv.memory_us, conv.dispatch_us) == pytest.approx((400, 4, 2))
    assert (fc.arithmetic_us, fc.memory_us, fc.dispatch_us) == pytest.approx((50, 40.4, 2))
    assert (rest.arithmetic_us, rest.memory_us, rest.dispatch_us) == pytest.approx((0, 2, 20))
    assert [bound.limit for bound in found.bounds] == ["arithmetic", "arithmetic", "dispatch"]
    assert found.call_us == 3
    assert found.latency_ms == pytest.approx((3 + 402 + 52 + 22) / 1e3)
    assert found.shares() == pytest.approx({"arithmetic": 450 / 479, "memory": 2 / 479, "dispatch": 27 / 479})


def test_with_8_bits_layers_shrink_and_everything_else_stays() -> None:
    conv, fc, rest = rooflines([CONV, FC, REST], target())["8 bits"].bounds
    assert (conv.arithmetic_us, conv.memory_us) == pytest.approx((100, 1))
    assert (fc.arithmetic_us, fc.memory_us) == pytest.approx((12.5, 10.1))
    assert (rest.memory_us, rest.dispatch_us) == pytest.approx((2, 20))


def test_bits_without_faster_arithmetic_have_float32_s_and_half_the_bytes() -> None:
    conv, fc = rooflines([CONV, FC], target())["16 bits"].bounds
    assert (conv.arithmetic_us, conv.memory_us) == pytest.approx((400, 2))
    assert (fc.arithmetic_us, fc.memory_us) == pytest.approx((50, 20.2))


def test_a_model_that_no_cache_holds_reads_at_the_speed_of_the_memory() -> None:
    """4 MB of weights in float32, and 1 MB in 8 bits next to the activations: too much for the cache of 1 MB too."""
    large = Operation("fc", "linear", 1_000_000, 1_000_000, 2_000)
    found = rooflines([large], target())
    assert found["float32"].bounds[0].memory_us == pytest.approx(4_008)
    assert found["float32"].bounds[0].limit == "memory"
    assert found["8 bits"].bounds[0].memory_us == pytest.approx(1_002)
    half = Operation("fc", "linear", 1_000_000, 500_000, 2_000)
    assert rooflines([half], target())["8 bits"].bounds[0].memory_us == pytest.approx(50.2)


def test_a_batch_computes_and_moves_more_and_reads_the_weights_once() -> None:
    [one], [four] = (
        rooflines([FC], target().model_copy(update={"batch": batch}))["float32"].bounds for batch in (1, 4)
    )
    assert four.arithmetic_us == 4 * one.arithmetic_us
    assert four.memory_us == pytest.approx(41.6)


def test_a_card_without_measurements_bounds_nothing() -> None:
    assert rooflines([CONV], load_target("cpu-openvino")) == {}
    assert rooflines([CONV], target(operation_us=None)) == {}
    assert limits({}, {}) is None


def test_a_card_that_knows_no_memory_bounds_by_arithmetic_and_dispatch() -> None:
    assert rooflines([FC], target(memory_gb_per_s=None, gb_per_s_by_bytes={}))["float32"].bounds[0].memory_us == 0
    assert rooflines([FC], target(gb_per_s_by_bytes={}))["float32"].bounds[0].memory_us == pytest.approx(404)


def test_limits_are_said_in_a_line() -> None:
    slim = [Operation("conv", "conv2d", 1_000_000, 250, 4_500)]
    found = limits(rooflines([CONV], target()), rooflines(slim, target()))
    assert isinstance(found, Limits)
    assert found.now.precision == "float32"
    assert found.gain("from 8 bits") == pytest.approx(405 / 105)
    assert found.gain("at half the channels") == pytest.approx(405 / 105)
    assert found.gain("from both") == pytest.approx(405 / 30)
    assert str(found) == (
        "at best about 3.9x from 8 bits, 3.9x at half the channels, 13.5x from both: arithmetic takes 99% of the model's "
        "least time"
    )


def test_dispatch_is_named_where_it_takes_most() -> None:
    tiny = rooflines([Operation("fc", "linear", 1_000, 1_000, 100, count=3)], target())
    assert str(limits(tiny, {})).endswith(
        "dispatching operations, which none of these shortens, takes 95% of the model's least time"
    )
