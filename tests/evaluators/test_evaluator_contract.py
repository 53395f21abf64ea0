"""What every evaluator has to do: name, order and units of its measurements, and intervals that hold them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from slimfront.core.errors import EvaluationError
from slimfront.core.measurement import METRICS
from slimfront.evaluators.accuracy import Accuracy
from slimfront.evaluators.counts import Complexity
from slimfront.evaluators.energy import Energy
from slimfront.evaluators.evaluator import Context, Evaluator, LoweredCandidate
from slimfront.evaluators.latency import Latency
from slimfront.evaluators.memory import PeakMemory
from slimfront.evaluators.size import ArtifactSize
from slimfront.spaces.policies.policy import LayerPolicy, Policy

POLICIES = [Policy(), Policy(layers={"0": LayerPolicy(4, 8), "5": LayerPolicy(8, 8, 0.5)})]
EVALUATORS = [Complexity(), ArtifactSize(), Accuracy(), Latency(0.1), PeakMemory()]


@pytest.fixture(params=EVALUATORS, ids=lambda evaluator: type(evaluator).__name__)
def evaluator(request: pytest.FixtureRequest) -> Evaluator:
    return request.param


def test_no_metric_is_made_by_two_evaluators():
    made = [name for evaluator in EVALUATORS for name in evaluator.metrics]
    assert len(made) == len(set(made))
    assert set(METRICS) - set(made) == {"test_accuracy", "test_accuracy_drop", *Energy.metrics}


@pytest.mark.parametrize("policy", POLICIES, ids=["uncompressed", "compressed"])
def test_measurements_are_those_declared_in_the_catalogues_units(policy, evaluator, complete, lower):
    measurements = evaluator.evaluate(lower(policy), complete)
    assert tuple(measurement.name for measurement in measurements) == evaluator.metrics
    for measurement in measurements:
        assert measurement.unit == METRICS[measurement.name].unit
        assert math.isfinite(measurement.value)
        assert measurement.low <= measurement.value <= measurement.high
        assert measurement.n >= 1
        assert measurement.method


def test_a_metric_without_meaning_for_the_workload_is_left_out(evaluator, complete, lower):
    own_loss = dataclasses.replace(complete.workload, loss=torch.nn.functional.cross_entropy)
    context = dataclasses.replace(complete, workload=own_loss)
    names = [measurement.name for measurement in evaluator.evaluate(lower(Policy()), context)]
    assert names == [name for name in evaluator.metrics if name not in ("cross_entropy", "kl")]


def test_an_evaluator_of_artifacts_refuses_a_candidate_without_one(evaluator, complete, lower):
    lowered = LoweredCandidate(lower(Policy()).candidate)
    if evaluator.needs_artifact:
        with pytest.raises(EvaluationError, match="artifact"):
            evaluator.evaluate(lowered, complete)
    else:
        assert evaluator.evaluate(lowered, complete)


def test_latency_needs_a_bench_and_a_reference(context: Context, complete, lower):
    lowered = lower(Policy())
    for lacking in (context, dataclasses.replace(complete, bench=None), dataclasses.replace(complete, reference=None)):
        with pytest.raises(EvaluationError, match=r"^latency needs an artifact, a bench and a reference$"):
            Latency().evaluate(lowered, lacking)


def test_evaluating_leaves_the_model_as_it_was(evaluator, complete, lower):
    lowered = lower(Policy())
    before = {name: tensor.clone() for name, tensor in lowered.candidate.model.state_dict().items()}
    evaluator.evaluate(lowered, complete)
    after = lowered.candidate.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
