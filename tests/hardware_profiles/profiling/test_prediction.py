"""Latency tables: costs that are known are found again, and what a policy is charged for by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from slimfront.hardware_profiles.cards.latency_table import LatencyTable
from slimfront.hardware_profiles.profiling.prediction import Call, calls_of, cost_units, fit_table, layers_of
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import nn

INTEGER = LayerPolicy(8, 8)


@pytest.fixture
def model() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 16, 5)).eval()


def test_what_a_layer_works_on_by_hand(model):
    assert layers_of(model) == ["0", "2", "3", "5"]
    assert calls_of(model, torch.zeros(1, 3, 4, 4)) == {
        "0": Call("conv2d", 3 * 16, 8 * 16, 8 * 27, 16 * 8 * 27),
        "2": Call("depthwise", 8 * 16, 8 * 16, 8 * 9, 16 * 8 * 9),
        "3": Call("pointwise", 8 * 16, 4 * 16, 4 * 8, 16 * 4 * 8),
        "5": Call("linear", 64, 5, 320, 320),
    }


def test_a_policy_is_charged_per_kind_layer_and_change_of_precision():
    calls = {"a": Call("conv2d", 10, 20, 5, 100), "b": Call("linear", 20, 10, 15, 300)}
    units = cost_units(Policy(layers={"b": INTEGER}), calls, calls)
    assert {name: amount for name, amount in units.items() if amount} == {
        "run": 1,
        "conv2d.f32.macs": 0.25, "conv2d.f32.inputs": pytest.approx(1 / 3), "conv2d.f32.outputs": pytest.approx(2 / 3),
        "conv2d.f32.weights": 0.25, "conv2d.f32.calls": 0.5, "a:f32": 0.25,
        "linear.i8.macs": 0.75, "linear.i8.inputs": pytest.approx(2 / 3), "linear.i8.outputs": pytest.approx(1 / 3),
        "linear.i8.weights": 0.75, "linear.i8.calls": 0.5, "b:i8": 0.75,
        "f32-i8.inputs": pytest.approx(2 / 3),  # b reads what a wrote in float
    }  # fmt: skip


def test_weights_without_integer_activations_are_charged_as_float():
    calls = {"a": Call("conv2d", 10, 20, 5, 100)}
    storage_only = cost_units(Policy(layers={"a": LayerPolicy(4, 32)}), calls, calls)
    assert storage_only == cost_units(Policy(), calls, calls)


def test_ranges_found_at_run_time_cost_what_they_cost_and_not_what_float_does():
    calls = {"a": Call("linear", 10, 20, 5, 100)}
    units = cost_units(Policy(layers={"a": LayerPolicy(8, 8, activation_range="dynamic")}), calls, calls)
    assert {name for name, amount in units.items() if ".macs" in name or ":" in name} == {
        "linear.dynamic.macs",
        "a:dynamic",
    }


def pruned(calls: dict[str, Call], generator: random.Random) -> dict[str, Call]:
    """Every layer made narrower by a factor of its own."""
    factors = {name: generator.choice([1, 0.75, 0.5]) for name in calls}
    return {
        name: Call(c.kind, int(c.inputs * f), int(c.outputs * f), int(c.weights * f * f), int(c.macs * f * f))
        for (name, c), f in zip(calls.items(), factors.values(), strict=True)
    }


def true_latency(policy: Policy, calls: dict[str, Call]) -> float:
    """A machine where integers are three times as fast, and every layer has a start-up of its own."""
    layers = ((policy.layer(name).weight_bits == 8, number, call) for number, (name, call) in enumerate(calls.items()))
    return 50 + sum(
        (1 + 0.3 * (number % 3)) * call.macs / (3 if integer else 1) + 20 for integer, number, call in layers
    )


def measured(count: int, seed: int, noise: float) -> tuple[list[dict[str, float]], np.ndarray]:
    generator = random.Random(seed)
    reference = {f"layer{i}": Call("conv2d" if i % 2 else "pointwise", 64, 64, 90, 500 + 40 * i) for i in range(12)}
    units, latencies = [], []
    for _ in range(count):
        policy = Policy(layers={name: INTEGER for name in reference if generator.random() < 0.5})
        calls = pruned(reference, generator)
        units.append(cost_units(policy, calls, reference))
        latencies.append(true_latency(policy, calls) * (1 + generator.gauss(0, noise)))
    return units, np.array(latencies) / true_latency(Policy(), reference)


def test_a_fitted_table_predicts_policies_it_has_not_seen():
    units, relative = measured(80, 0, noise=0.01)
    table = fit_table([], units, relative, [0.01] * 80, reference_ms=7.0)
    unseen, truth = measured(30, 1, noise=0)
    predicted = np.array([table.predict(each) for each in unseen]) / 7.0
    assert np.median(np.abs(predicted / truth - 1)) < 0.02
    assert spearmanr(predicted, truth).statistic > 0.97
    assert table.policies == 80
    # What the table says of its own error is about what it makes on others.
    assert table.error == pytest.approx(np.median(np.abs(predicted / truth - 1)), abs=0.015)
    assert table.error < table.error_95


def test_a_measurement_that_is_not_sure_counts_for_less():
    units, relative = measured(80, 0, noise=0)
    spoilt, spread = relative.copy(), np.full(80, 0.01)
    spoilt[::8] *= 3
    spread[::8] = 2.0
    unseen, truth = measured(30, 1, noise=0)

    def error(spread: np.ndarray) -> float:
        table = fit_table([], units, spoilt, spread, 1.0)
        return float(np.median(np.abs(np.array([table.predict(each) for each in unseen]) / truth - 1)))

    assert error(spread) < 0.03 < error(np.full(80, 0.01))


@given(st.integers(0, 100))
def test_more_work_never_takes_less_time(seed):
    units, relative = TRAINED
    table = fit_table([], units, relative, [0.01] * len(units), 1.0) if not TABLES else TABLES[0]
    TABLES.append(table)
    reference = {f"layer{i}": Call("conv2d" if i % 2 else "pointwise", 64, 64, 90, 500 + 40 * i) for i in range(12)}
    calls = pruned(reference, random.Random(seed))
    policy = Policy()
    assert table.predict(cost_units(policy, calls, reference)) <= table.predict(
        cost_units(policy, reference, reference)
    )


TRAINED = measured(40, 2, noise=0.02)
TABLES: list[LatencyTable] = []


def test_a_table_travels_as_json():
    table = LatencyTable(model=["a"], costs={"run": 0.5}, reference_ms=2.0, error=0.01, error_95=0.05, policies=9)
    assert LatencyTable.model_validate_json(table.model_dump_json()) == table
    assert table.predict({"run": 1.0, "something new": 9.0}) == 1.0


def test_layers_in_a_precision_that_the_table_holds_nothing_of_are_not_taken_to_be_free():
    calls = {"a": Call("conv2d", 10, 20, 5, 100)}
    table = LatencyTable(
        model=["a"],
        costs={"conv2d.f32.macs": 0.5, "a:i8": 0.1},
        reference_ms=2.0,
        error=0.01,
        error_95=0.05,
        policies=9,
    )
    units = {bits: cost_units(Policy(layers={"a": LayerPolicy(bits, bits)}), calls, calls) for bits in (8, 16, 32)}
    assert {bits: table.missing(each) for bits, each in units.items()} == {8: [], 16: ["bf16"], 32: []}
