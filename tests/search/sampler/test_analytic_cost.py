"""Counts of a policy that no model is built for, held against the counts of the built model."""

import numpy as np
import pytest
import torch
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.evaluators.evaluator import LoweredCandidate
from slimfront.evaluators.registry import measure
from slimfront.hardware_profiles.runtimes.onnx.openvino_runtime import OpenVinoRuntime
from slimfront.search.sampler.dimensions import decode, encode
from slimfront.search.sampler.study_terms import role_of, space_dimensions, worst_corner
from slimfront.search.sampler.surrogate import analytic_cost
from slimfront.search.sampler.surrogate.analytic_cost import COUNTED, OF_MACHINES, AnalyticCost, channel_shares
from slimfront.search.trials.prepared_study import prepare
from slimfront.spaces.models.channel_graph import ChannelGraph
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.studies.study_file.constraint import Constraint
from torch import nn

SPACE = {
    "granularity": "layer",
    "weight_bits": [4, 16, 32],
    "activation_bits": [8, 16, 32],
    "channel_sparsity": [0, 0.5],
    "width": [1.0, 0.5],
    "keep": ["fc"],
}


@pytest.fixture
def prepared(tiny_spec):
    return prepare(tiny_spec(space=SPACE))


@pytest.fixture
def cost(prepared):
    workload = prepared.context.workload
    return AnalyticCost(prepared.space, prepared.layers, workload.model, workload.example_input)


@pytest.mark.parametrize(
    ("space", "quantization"),
    [
        (SPACE, {"weights": "channel"}),
        (SPACE, {"weights": "tensor"}),
        (SPACE | {"keep": [], "weight_group_size": [0, 32]}, {"group_grids": "affine"}),
        (SPACE | {"keep": [], "weight_group_size": [64]}, {"weights": "tensor"}),
    ],
)
def test_what_is_counted_at_once_is_what_complexity_counts_of_the_built_model(space, quantization, tiny_spec):
    prepared = prepare(tiny_spec(space=space, quantization=quantization))
    workload = prepared.context.workload
    cost = AnalyticCost(prepared.space, prepared.layers, workload.model, workload.example_input)
    dimensions = space_dimensions(prepared.space)
    sizes = [len(knob.choices) for knob in dimensions]
    codes = np.random.default_rng(0).integers(sizes, size=(12, len(sizes)))
    for row, found in zip(codes, cost(codes), strict=True):
        policy = prepared.space.policy(decode(dimensions, row))
        model = pruned_copy(workload.model, workload.example_input, policy, prepared.groups)
        counted = measure(LoweredCandidate(Candidate(policy, model)), prepared.context, "counted")
        exact = {measurement.name: measurement.value for measurement in counted}
        for index, name in enumerate(COUNTED):
            assert found[index] == pytest.approx(exact[name], rel=0.05 if name == "flops" else 1e-9, abs=1), name


def test_what_files_hold_and_machines_multiply_is_reported_with_the_counts(tiny_spec):
    """A layer of 4 bits is stored and multiplied as one of 8; one integer operand alone leaves the product in float."""
    prepared = prepare(tiny_spec(space={"weight_bits": [4, 8, 32], "activation_bits": [8, 32]}))
    space, workload = prepared.space, prepared.context.workload
    cost = AnalyticCost(space, prepared.layers, workload.model, workload.example_input)

    def terms(**bits: int) -> dict[str, float]:
        codes = encode(space_dimensions(space), space.parameters(space.uniform(bits)))
        return dict(zip((*COUNTED, "multiplied", "stored"), cost(codes[None])[0], strict=True))

    whole, eight, four = terms(), terms(weight_bits=8, activation_bits=8), terms(weight_bits=4, activation_bits=8)
    assert whole["multiplied"] == pytest.approx(whole["bops"], rel=0.05)
    assert eight["multiplied"] < whole["multiplied"] / 8
    assert four["multiplied"] == eight["multiplied"]
    assert four["bops"] < eight["bops"]
    assert four["stored"] == eight["stored"]
    assert four["packed_bytes"] < eight["packed_bytes"]
    assert terms(weight_bits=8)["multiplied"] == whole["multiplied"]
    assert terms(weight_bits=8)["stored"] == eight["stored"] < whole["stored"]


def test_a_model_is_traced_once_for_the_shares_of_all_its_groups(monkeypatch):
    traced = []

    class Counted(ChannelGraph):
        def __init__(self, *args) -> None:
            traced.append(args)
            super().__init__(*args)

    monkeypatch.setattr(analytic_cost, "ChannelGraph", Counted)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 2))
    example = torch.zeros(1, 4)
    shares = channel_shares(model, example, find_layers(model, example), find_channel_groups(model, example)[0])
    assert len(traced) == 1
    assert shares.outputs.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert shares.inputs.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert shares.others.tolist() == pytest.approx([16 / 18, 0])  # biases: 16 of the first layer, 2 of the last


def test_points_that_are_one_model_have_one_key(prepared, cost):
    dimensions = space_dimensions(prepared.space)
    names = [knob.name for knob in dimensions]
    codes = np.zeros((3, len(names)), dtype=int)
    channels = [index for index, knob in enumerate(dimensions) if knob.kind == "channels"]
    codes[0, channels] = 1  # 16 channels at full width, half of them removed
    codes[1, names.index("00.student.width") if "00.student.width" in names else 0] = 1  # half the width
    codes[2, 1] = codes[2, -1] = 1
    first, second, third = cost.keys(codes)
    assert first == second != third


def test_the_worst_corner_is_tightened_by_constraints_on_objectives():
    baseline = {"accuracy": 0.9, "speedup": 1.1, "latency_ms": 2.0, "accuracy_drop": 0.0}
    corner = worst_corner(baseline, ["accuracy", "speedup", "latency_ms"], [])
    assert corner == pytest.approx([0.8, 1.0, 2.2])
    bounds = [Constraint("latency_ms", "<=", 1.5), Constraint("speedup", ">=", 0.5), Constraint("flops", "<=", 9)]
    assert worst_corner(baseline, ["accuracy", "speedup", "latency_ms"], bounds) == pytest.approx([0.8, 1.0, 1.5])


def test_where_layers_may_be_replaced_costs_are_learned_instead_of_counted(prepared, cost, tiny_spec):
    assert cost.is_exact
    assert role_of("bops", cost.is_exact) == COUNTED.index("bops")
    workload = prepared.context.workload
    other = prepare(tiny_spec(space={**SPACE, "operators": ["dense", "separable"]}))
    replaced = AnalyticCost(other.space, other.layers, workload.model, workload.example_input)
    assert not replaced.is_exact
    assert role_of("bops", replaced.is_exact) == "measured"


def test_floats_of_16_bits_are_multiplied_as_such_and_change_no_count(tiny_spec, monkeypatch):
    monkeypatch.setattr(OpenVinoRuntime, "float_precisions", lambda *_: ("default", "float32"))
    monkeypatch.setattr(OpenVinoRuntime, "default_float_precision", lambda *_: "bfloat16")
    prepared = prepare(
        tiny_spec(space={"weight_bits": [8, 32], "activation_bits": [8, 32], "float_precision": ["default", "float32"]})
    )
    space, workload = prepared.space, prepared.context.workload
    cost = AnalyticCost(space, prepared.layers, workload.model, workload.example_input)
    codes = [
        encode(space_dimensions(space), space.parameters(space.uniform({"float_precision": precision, **bits})))
        for bits in ({}, {"weight_bits": 8, "activation_bits": 8})
        for precision in ("float32", "default")
    ]
    whole, halves, eight, eight_in_halves = cost(np.stack(codes))
    machine, counted = OF_MACHINES[0], slice(len(COUNTED))
    assert halves[machine] == whole[machine] / 4
    assert eight_in_halves[machine] < eight[machine] < halves[machine]
    assert (halves[counted] == whole[counted]).all()
    assert (eight_in_halves[counted] == eight[counted]).all()
