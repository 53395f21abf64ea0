"""A small workload on ONNX Runtime, and everything an evaluator is given to judge one of its candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.compression.quantization.quantize import quantize
from slimfront.evaluators.accuracy import score
from slimfront.evaluators.evaluator import Context, LoweredCandidate, Reference
from slimfront.hardware_profiles.bench.bench import Bench, bench_cores
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import Policy
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples(count: int, seed: int) -> TensorDataset:
    """Inputs [3, 8, 8] whose class, of six, is mostly what the model says."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 3, 8, 8, generator=generator), torch.randint(0, 6, (count,), generator=generator)
    )


@pytest.fixture
def workload() -> Workload:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, 6)).eval()
    train = samples(8, 0)
    return Workload(model, train, samples(60, 1), samples(53, 2), samples(20, 3), train.tensors[0][:1])


@pytest.fixture
def context(workload: Workload) -> Context:
    """Without bench and reference."""
    target = load_target("cpu-onnxruntime").model_copy(update={"batch": 10})
    return Context(workload, target, get_runtime("onnxruntime"))


@pytest.fixture
def lower(context: Context, tmp_path: Path) -> Callable[..., LoweredCandidate]:
    """(policy, batch of the target, the target's own unless given) -> lowered with its artifact."""

    def make(policy: Policy, batch: int | None = None) -> LoweredCandidate:
        workload, target = context.workload, context.target.model_copy(update={"batch": batch or context.target.batch})
        example = workload.example_input
        made = Candidate(policy, workload.model, quantize(workload.model, example, policy, workload.calibration))
        path = tmp_path / f"{policy.digest}-{target.batch}.onnx"
        return LoweredCandidate(made, context.runtime.lower(made, example, target, path))

    return make


@pytest.fixture
def complete(context: Context, lower: Callable[..., LoweredCandidate]) -> Iterator[Context]:
    """The context with a bench and a scored reference."""
    artifact = lower(Policy()).artifact
    inputs = np.zeros((context.target.batch, 3, 8, 8), np.float32)
    scores = score(artifact, context.workload.validation, context, keep=artifact.path.with_name("kept"))
    reference = Reference(artifact, 2.0, validation=scores)
    with Bench(context.target, artifact.path, {"input": inputs}, bench_cores(1)) as bench:
        yield dataclasses.replace(context, bench=bench, reference=reference)
