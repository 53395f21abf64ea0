"""What every evaluator has to do: name, order and units of its measurements, and intervals that hold them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from slimfront.compression.packing.packed_file import save_packed
from slimfront.core.errors import EvaluationError
from slimfront.core.metrics import METRICS, Phase
from slimfront.evaluators.evaluator import Context, Evaluator, LoweredCandidate
from slimfront.evaluators.latency import Latency
from slimfront.evaluators.registry import evaluators
from slimfront.hardware_profiles.bench.bench import Bench
from slimfront.hardware_profiles.profiling.prediction import calls_of, cost_units, fit_table, layers_of
from slimfront.spaces.policies.policy import LayerPolicy, Policy

POLICIES = [Policy(), Policy(layers={"0": LayerPolicy(4, 8), "5": LayerPolicy(8, 8, 0.5)})]
PHASES = get_args(Phase)
EVALUATORS = evaluators()


class Meter:
    """A bench that has an energy counter, whatever the machine has."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __getattr__(self, name: str) -> object:
        return getattr(self._bench, name)

    def energy(self, candidate: Path, seconds: float, repeats: int) -> tuple[str, list[float]]:
        return "a counter", [1.0, 2.0, 3.0] * (repeats // 3)


@pytest.fixture(params=EVALUATORS, ids=lambda evaluator: evaluator.name)
def evaluator(request: pytest.FixtureRequest) -> Evaluator:
    return request.param


@pytest.fixture
def at(evaluator: Evaluator, complete: Context) -> Context:
    """Where an evaluator finds everything that it may need."""
    reference = dataclasses.replace(complete.reference, test=complete.reference.validation)
    test = dataclasses.replace(complete.workload, test=complete.workload.validation)
    context = dataclasses.replace(
        complete, workload=test, bench=Meter(complete.bench), reference=reference, timing_seconds=0.1
    )
    if evaluator.source != "table":
        return context
    model, example = context.workload.model, context.workload.example_input
    costs = [cost_units(policy, calls_of(model, example), calls_of(model, example)) for policy in POLICIES]
    table = fit_table(layers_of(model), costs * 8, [1.0, 0.8] * 8, [0.01] * 16, 2.0)
    return dataclasses.replace(
        context, target=context.target.model_copy(update={"latency_table": table, "predict": True})
    )


@pytest.fixture
def kept(evaluator: Evaluator, lower, tmp_path: Path) -> Callable[[Policy], LoweredCandidate]:
    """(policy) -> its lowered candidate as the last of the evaluator's phases has it."""

    def make(policy: Policy) -> LoweredCandidate:
        lowered = lower(policy)
        if "counted" in evaluator.phases:
            return LoweredCandidate(lowered.candidate)
        if evaluator.phases == ("confirmed",):
            return LoweredCandidate(None, lowered.artifact)
        if "scored" in evaluator.phases:
            return dataclasses.replace(lowered, packed=save_packed(lowered.candidate, tmp_path / "packed.safetensors"))
        return lowered

    return make


def names(evaluator: Evaluator) -> tuple[str, ...]:
    return tuple(metric.name for metric in evaluator.metrics)


def test_every_metric_is_made_in_the_phase_it_says_and_in_none_before():
    first = {
        name: min((phase for e in EVALUATORS if name in names(e) for phase in e.phases), key=PHASES.index)
        for name in METRICS
    }
    assert first == {name: metric.phase for name, metric in METRICS.items()}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("other", ["bench", "table"])
def test_no_metric_is_made_twice_in_a_phase(phase, other):
    made = [name for e in EVALUATORS if phase in e.phases and e.source != other for name in names(e)]
    assert len(made) == len(set(made))


@pytest.mark.parametrize("policy", POLICIES, ids=["uncompressed", "compressed"])
def test_measurements_are_those_declared_in_the_catalogues_units(policy, evaluator, at, kept):
    measurements = evaluator.evaluate(kept(policy), at)
    made = [measurement.name for measurement in measurements]
    assert made == [name for name in names(evaluator) if name != "damage"]  # a classifier's is kl
    for measurement in measurements:
        assert measurement.unit == METRICS[measurement.name].unit
        assert math.isfinite(measurement.value)
        assert measurement.low <= measurement.value <= measurement.high
        assert measurement.n >= 1
        assert measurement.method


def test_a_count_is_exact(evaluator, at, kept):
    for measurement in evaluator.evaluate(kept(POLICIES[1]), at):
        if METRICS[measurement.name].role == "count":
            assert measurement.low == measurement.value == measurement.high


def test_a_metric_without_meaning_for_the_workload_is_left_out(evaluator, at, kept):
    own_loss = dataclasses.replace(at.workload, loss=torch.nn.functional.cross_entropy)
    found = evaluator.evaluate(kept(Policy()), dataclasses.replace(at, workload=own_loss))
    assert [m.name for m in found] == [name for name in names(evaluator) if name not in ("cross_entropy", "damage")]


def test_what_a_phase_has_not_yet_is_refused_or_left_out(evaluator, at):
    nothing = LoweredCandidate(None)
    if evaluator.name == "packed size":
        assert evaluator.evaluate(nothing, at) == []
        return
    with pytest.raises(EvaluationError, match=r" needs (an artifact|the model)"):
        evaluator.evaluate(nothing, at)


def test_the_source_says_on_which_targets_it_runs(evaluator, complete):
    here, elsewhere = (complete.target.model_copy(update={"predict": predict}) for predict in (False, True))
    assert (evaluator.refusal(elsewhere) is None) == (evaluator.source != "bench")
    if evaluator.source == "table":
        assert evaluator.refusal(here) is not None


def test_latency_needs_an_artifact_and_a_bench(context: Context, complete, lower):
    lowered = lower(Policy())
    for given, at in ((lowered, context), (LoweredCandidate(lowered.candidate), complete)):
        with pytest.raises(EvaluationError, match=r"^latency needs an artifact and a bench$"):
            Latency().evaluate(given, at)


def test_the_reference_is_timed_against_itself(complete, lower):
    at = dataclasses.replace(complete, reference=None, timing_seconds=0.1)
    found = {m.name: m for m in Latency().evaluate(lower(Policy()), at)}
    assert found["latency_ms"].method == "median on the quiet machine"
    assert found["speedup"].value == pytest.approx(1, rel=0.5)
    assert found["throughput"].value == pytest.approx(1e3 * at.target.batch / found["latency_ms"].value)


def test_evaluating_leaves_the_model_as_it_was(evaluator, at, kept):
    lowered, model = kept(Policy()), at.workload.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluator.evaluate(lowered, at)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
