"""Evaluators: numbers by hand, and the contract all of them keep."""

from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.errors import EvaluationError
from slimfront.evaluators.accuracy import Accuracy, score
from slimfront.evaluators.complexity import Complexity
from slimfront.evaluators.evaluator import Context, Reference, Subject
from slimfront.evaluators.latency import Latency, latency_measurements
from slimfront.evaluators.scores import Scores
from slimfront.evaluators.size import ArtifactSize
from slimfront.hardware_profiles.bench import Bench, PairedTiming, bench_cores
from slimfront.hardware_profiles.runtime import get_runtime
from slimfront.hardware_profiles.target import load_target
from slimfront.measurement import METRICS
from slimfront.spaces.candidate import Candidate
from slimfront.spaces.policy import LayerPolicy, Policy
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


def small_model() -> nn.Module:
    """A convolution of 2x3x3x1 = 18 weights on 4x4 outputs, and a linear layer of 32x3 = 96 weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()


@pytest.fixture
def context() -> Context:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(10, 1, 4, 4, generator=generator), torch.arange(10) % 3)
    workload = Workload(small_model(), data, data, data, data, data.tensors[0][:1])
    target = load_target("cpu-openvino")
    return Context(workload, target, get_runtime(target.runtime))


@pytest.fixture
def subject(context: Context, tmp_path: Path) -> Subject:
    candidate = Candidate(Policy(), context.workload.model)
    artifact = context.runtime.lower(candidate, context.workload.example_input, context.target, tmp_path / "m.onnx")
    return Subject(candidate, artifact)


def test_complexity_by_hand(context: Context) -> None:
    policy = Policy(layers={"0": LayerPolicy(8, 8), "3": LayerPolicy(4, 32)})
    measured = Complexity().evaluate(Subject(Candidate(policy, context.workload.model)), context)
    values = {m.name: m.value for m in measured}
    assert values["flops"] == 18 * 16 + 96
    assert values["bops"] == 18 * 16 * 8 * 8 + 96 * 4 * 32
    assert values["parameters"] == 18 + 96 + 3
    assert values["packed_bytes"] == 18 + 96 // 2 + 3 * 4


def test_hits_and_wilson_interval_by_hand() -> None:
    outputs = torch.eye(4)[[0, 1, 2, 2]]  # the last sample is wrong: its class is 3
    scores = Scores(outputs, torch.arange(4), "top1")
    assert scores.value() == 0.75
    low, high, method = scores.interval()
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = 3/4, n = 4, z = 1.96
    assert (low, high, method) == (pytest.approx(0.3006, abs=1e-3), pytest.approx(0.9544, abs=1e-3), "wilson")


def test_the_drop_is_paired_sample_by_sample() -> None:
    targets = torch.arange(4)
    right, one_wrong = Scores(torch.eye(4), targets, "top1"), Scores(torch.eye(4)[[0, 1, 2, 2]], targets, "top1")
    drop, low, high, method = one_wrong.drop_from(right)
    half = 1.959964 * np.std([0, 0, 0, 1]) / 2
    assert (drop, low, high) == (0.25, pytest.approx(0.25 - half), pytest.approx(0.25 + half))
    assert method == "paired-normal"
    assert right.drop_from(right)[:3] == (0, 0, 0)


def test_a_metric_function_gets_a_bootstrap_interval() -> None:
    scores = Scores(torch.arange(100.0), torch.zeros(100), lambda outputs, targets: float((outputs - targets).mean()))
    low, high, method = scores.interval()
    assert scores.value() == 49.5
    assert method == "bootstrap"
    assert 40 < low < 49.5 < high < 59


def test_a_metric_that_is_no_number_is_an_evaluation_error() -> None:
    with pytest.raises(EvaluationError, match="metric returned nan"):
        Scores(torch.zeros(2), torch.zeros(2), lambda *_: float("nan")).value()


def test_batches_do_not_change_the_scores(context: Context, tmp_path: Path) -> None:
    """10 samples in batches of 4: the last one is padded."""
    candidate = Candidate(Policy(), context.workload.model)
    outputs = []
    for batch in (1, 4):
        target = context.target.model_copy(update={"batch": batch})
        artifact = context.runtime.lower(candidate, context.workload.example_input, target, tmp_path / f"{batch}.onnx")
        batched = Context(context.workload, target, context.runtime)
        outputs.append(score(artifact, context.workload.validation, batched).outputs)
    assert outputs[0].shape == (10, 3)
    torch.testing.assert_close(outputs[0], outputs[1])


def test_latency_is_the_quiet_reference_over_the_speedup() -> None:
    speedup, latency = latency_measurements(PairedTiming(2.0, 1.6, 2.5, 7.0, 14.0, 48, False), reference_ms=10.0)
    assert (speedup.value, speedup.low, speedup.high, speedup.n) == (2.0, 1.6, 2.5, 48)
    assert (latency.value, latency.low, latency.high) == (5.0, 4.0, 6.25)


@pytest.mark.parametrize("evaluator", [Accuracy(), ArtifactSize(), Latency()], ids=lambda e: type(e).__name__)
def test_what_needs_an_artifact_says_so(evaluator: object, context: Context) -> None:
    assert evaluator.needs_artifact
    with pytest.raises(EvaluationError, match="needs an artifact"):
        evaluator.evaluate(Subject(Candidate(Policy(), context.workload.model)), context)


@pytest.mark.slow
def test_every_evaluator_keeps_the_contract(context: Context, subject: Subject) -> None:
    inputs = context.workload.example_input.numpy()
    with Bench(context.target, subject.artifact.path, inputs, bench_cores(1)) as bench:
        full = Context(
            context.workload, context.target, context.runtime, bench=bench, reference=Reference(subject.artifact, 1.0)
        )
        for evaluator in (Complexity(), ArtifactSize(), Accuracy(), Latency(0.2)):
            measured = evaluator.evaluate(subject, full)
            assert [m.name for m in measured] == list(evaluator.metrics)
            for m in measured:
                assert m.unit == METRICS[m.name].unit
                assert m.low <= m.value <= m.high
                assert m.n >= 1
