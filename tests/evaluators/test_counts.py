"""What is counted: FLOPs, BOPs, parameters and bytes of a small network by hand; latency from a timing."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.evaluators.evaluator import LoweredCandidate, Reference
from slimfront.evaluators.latency import Latency, latency_measurements
from slimfront.evaluators.registry import measure
from slimfront.evaluators.size import ArtifactSize
from slimfront.hardware_profiles.bench.conditions import Conditions, CoreState
from slimfront.hardware_profiles.bench.paired_timing import PairedTiming, Percentile
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import nn

CONV, GROUPED, LINEAR = 8 * 64 * 27, 16 * 16 * 18, 256 * 10
"""Multiply-adds: outputs x pixels x inputs of each."""


@pytest.fixture
def model() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4, bias=False)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10)).eval()


@pytest.fixture
def counted(context, model):
    def count(policy: Policy, compressed: nn.Module = model) -> dict[str, float]:
        workload = dataclasses.replace(context.workload, model=model)
        at = dataclasses.replace(context, workload=workload)
        measurements = measure(LoweredCandidate(Candidate(policy, compressed)), at, "counted")
        assert all(m.low == m.value == m.high for m in measurements)
        return {m.name: m.value for m in measurements}

    return count


def test_the_uncompressed_network_by_hand(counted):
    parameters = 8 * 27 + 8 + 16 * 18 + 2560 + 10
    assert counted(Policy()) == {
        "flops": CONV + GROUPED + LINEAR,
        "bops": (CONV + GROUPED + LINEAR) * 32 * 32,
        "parameters": parameters,
        "packed_bytes": 4 * parameters,
    }


def test_mixed_bits_by_hand(counted):
    policy = Policy(layers={"0": LayerPolicy(8, 8), "2": LayerPolicy(3, 6), "4": LayerPolicy(weight_bits=16)})
    counts = counted(policy)
    assert counts["bops"] == CONV * 8 * 8 + GROUPED * 3 * 6 + LINEAR * 16 * 32
    bits = 8 * (8 * 27) + 3 * (16 * 18) + 16 * 2560 + 32 * (8 + 10)
    steps, inputs = 4 * (8 + 16), 2 * (4 + 1)
    assert counts["packed_bytes"] == bits / 8 + steps + inputs
    assert counts["flops"] == CONV + GROUPED + LINEAR


def test_codes_take_their_bits_and_their_table_and_are_multiplied_with_as_floats(counted):
    counts = counted(Policy(layers={"2": LayerPolicy(3, 8, codebook="k_means")}))
    bits = 3 * (16 * 18) + 32 * 8 + 32 * (8 * 27 + 8 + 2560 + 10)  # eight values
    assert counts["packed_bytes"] == bits / 8 + 5  # the grid of its input
    assert counts["bops"] == CONV * 32 * 32 + GROUPED * 32 * 8 + LINEAR * 32 * 32


def test_packed_bits_are_rounded_up_to_bytes(context):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, bias=False)).eval()
    lowered = LoweredCandidate(Candidate(Policy(layers={"2": LayerPolicy(weight_bits=3)}), model))
    counts = {m.name: m.value for m in measure(lowered, context, "counted")}
    assert counts["packed_bytes"] == 4 + 3 * 4  # 27 bits, and a step for each channel


def test_masked_weights_count_and_removed_channels_do_not(counted, model):
    example = torch.zeros(1, 3, 8, 8)
    wide = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 1), nn.Flatten()).eval()
    groups, _ = find_channel_groups(wide, example)
    masked = pruned_copy(wide, example, Policy(layers={"0": LayerPolicy(sparsity=0.5)}), groups)
    pruned = pruned_copy(wide, example, Policy(width=0.5), groups)
    counts = {name: counted(Policy(), made) for name, made in (("wide", wide), ("masked", masked), ("pruned", pruned))}
    assert counts["masked"] == {
        **counts["wide"],
        "packed_bytes": 108 + 432 * 4 + (32 + 8 * 32 + 8) * 4,
    }  # 864 bits, 432 values
    assert counts["wide"]["flops"] == 64 * (32 * 27 + 8 * 32)
    assert counts["pruned"]["flops"] == 64 * (16 * 27 + 8 * 16)
    assert counts["pruned"]["parameters"] == 16 * 27 + 16 + 8 * 16 + 8


def test_a_weight_that_two_layers_share_counts_once(context):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    model[3].weight = model[2].weight
    counts = {m.name: m.value for m in measure(LoweredCandidate(Candidate(Policy(), model)), context, "counted")}
    assert counts["parameters"] == 9 + 3 + 3
    assert counts["bops"] == 2 * 9 * 32 * 32


def test_a_layer_over_tokens_counts_its_bops_per_token(context):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1, 2))  # 24 tokens of 8

    lowered = LoweredCandidate(Candidate(Policy(layers={"fc": LayerPolicy(4, 8)}), Tokens().eval()))
    counts = {m.name: m.value for m in measure(lowered, context, "counted")}
    assert counts["flops"] == 24 * 40
    assert counts["bops"] == 24 * 40 * 32


def test_artifact_bytes_are_those_of_the_file(context, lower):
    lowered = lower(Policy())
    (measured,) = ArtifactSize().evaluate(lowered, context)
    assert measured.value == lowered.artifact.path.stat().st_size
    assert measured.unit == "bytes"


def test_latency_from_a_timing_by_hand():
    percentiles = {50: Percentile(7.5, 7, 8), 90: Percentile(9, 8.5, 9.5), 99: Percentile(12, 10, 20)}
    timing = PairedTiming(
        2.0, 1.96, 2.05, 7.0, reference_ms=14.0, half_width=0.02, pairs=48, noisy=True, percentiles=percentiles, runs=99
    )
    target = load_target("cpu-onnxruntime").model_copy(update={"batch": 5, "threads": 4, "streams": 2})
    speedup, latency, throughput, *runs = latency_measurements(timing, 10.0, target)
    assert (speedup.value, speedup.low, speedup.high, speedup.n) == (2.0, 1.96, 2.05, 48)
    # The reference's quiet latency over the speed-up, not what the noisy clock of this timing said.
    assert (latency.value, latency.low, latency.high) == (5.0, 10 / 2.05, 10 / 1.96)
    assert (throughput.value, throughput.low, throughput.high) == pytest.approx(
        (2000, 1960, 2050)
    )  # 10 samples in 5 ms
    assert {measured.noisy for measured in (speedup, latency, throughput)} == {True}
    assert [measured.unit for measured in (speedup, latency, throughput)] == ["ratio", "ms", "samples/s"]
    assert [(m.name, m.value, m.low, m.high, m.n) for m in runs] == [
        ("latency_p50_ms", 7.5, 7, 8, 99),
        ("latency_p90_ms", 9, 8.5, 9.5, 99),
        ("latency_p99_ms", 12, 10, 20, 99),
    ]


def test_an_uncertain_figure_counts_as_its_worse_end_and_says_why():
    before, after = CoreState(3000, 60.0, 0), CoreState(2400, 95.0, 2)
    timing = PairedTiming(16.0, 3.3, 38.8, 0.1, 0.4, 3.8, 8, True, {}, 99, conditions=Conditions(before, after, 9.8))
    speedup, latency, throughput = latency_measurements(timing, 9.9, load_target("cpu-onnxruntime"))
    assert (speedup.value, speedup.low, speedup.high) == (3.3, 3.3, 38.8)
    assert (latency.value, throughput.value) == (pytest.approx(3), pytest.approx(1e3 / 3))
    remarks = [
        "at 2400 MHz, 95 C",
        "waited 10 s for a quiet machine",
        "the clock moved from 3000 to 2400 MHz",
        "the processor was slowed for its heat",
        "too noisy: the worse end counts",
    ]
    assert speedup.method == "paired-median " + "; ".join(remarks)


@pytest.mark.parametrize(("was_timed_here", "known_ms"), [(True, 0.5), (False, math.inf)])
def test_another_machines_quiet_time_does_not_make_this_one_disturbed(context, was_timed_here, known_ms):
    """The timer stands in for a bench: what it is asked for is the test."""
    asked: list[float] = []

    class Asked:
        def time(self, path: Path, seconds: float, quiet_reference_ms: float) -> PairedTiming:
            asked.append(quiet_reference_ms)
            return PairedTiming(2.0, 1.99, 2.01, 0.5, 1.0, 0.005, 24, False, {}, 99)

    artifact = Artifact(Path("model.onnx"), 1)
    reference = Reference(artifact, 0.5, was_timed_here=was_timed_here)
    at = dataclasses.replace(context, bench=Asked(), reference=reference)
    speedup, latency, *_ = Latency().evaluate(LoweredCandidate(None, artifact), at)
    assert asked == [known_ms]
    assert (speedup.value, latency.value) == (2.0, 0.25)
