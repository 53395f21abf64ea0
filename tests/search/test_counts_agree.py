"""Three places count: the evaluators of a built model, the bounds of a space and the sampler's arrays. They say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slimfront.compression.pruning.prune import kept_channels, pruned_copy
from slimfront.evaluators.counts import COUNTED, counts_of
from slimfront.evaluators.evaluator import LoweredCandidate
from slimfront.evaluators.registry import measure
from slimfront.search.sampler.dimensions import encode
from slimfront.search.sampler.study_terms import cost_of, space_dimensions
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.spaces.models.layers import LAYER_KINDS, macs_by_module
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import Policy
from slimfront.spaces.policies.resolved import effective_policy
from torch import nn

BITS = {"weight_bits": [2, 4, 8, 16, 32], "activation_bits": [8, 16, 32]}
STRUCTURE = {"granularity": "layer", "channel_sparsity": [0, 0.25, 0.5], "width": [1.0, 0.75, 0.5]}
SPACES = {
    "whole layers": {**BITS, **STRUCTURE},
    "masks and operators": {
        **BITS,
        **STRUCTURE,
        "weight_sparsity": [0, 0.5],
        "operators": ["dense", "rank=0.5"],
    },
}


@pytest.fixture(params=["channel", "tensor"])
def grids(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def evaluated(prepared: PreparedStudy, policy: Policy) -> dict[str, float]:
    """What the evaluators count of the model that the policy is built into."""
    workload = prepared.context.workload
    model = pruned_copy(workload.model, workload.example_input, policy, prepared.groups)
    lowered = LoweredCandidate(Candidate(effective_policy(policy), model))
    return {m.name: m.value for m in measure(lowered, prepared.context, "counted")}


def bounded(prepared: PreparedStudy, policy: Policy) -> dict[str, float]:
    """What the bounds of a space count, which build channels alone."""
    workload = prepared.context.workload
    structure = Policy(width=policy.width, channels=policy.channels)
    assert kept_channels(structure, prepared.groups) == kept_channels(policy, prepared.groups)
    model = pruned_copy(workload.model, workload.example_input, structure, prepared.groups)
    return counts_of(model, macs_by_module(model, workload.example_input), policy)


def points(prepared: PreparedStudy) -> st.SearchStrategy[Policy]:
    """Policies of the study's space."""
    knobs = prepared.space.knobs
    return st.tuples(*(st.sampled_from(knob.choices) for knob in knobs)).map(
        lambda choices: prepared.space.policy({k.name: choice for k, choice in zip(knobs, choices, strict=True)})
    )


@pytest.mark.parametrize("network", ["workload", "words"])
def test_evaluators_bounds_and_sampler_agree(tiny_spec, grids, one_thread, network):
    workload = f"{Path(__file__).with_name('tiny_workload.py')}:{network}"
    space = {**SPACES["whole layers"], "embedding_bits": [32, 8, 4]}
    prepared = prepare(tiny_spec(workload=workload, space=space, quantization={"weights": grids}))
    assert any(knob.kind == "embedding_bits" for knob in prepared.space.knobs) == (network == "words")
    cost, dimensions = cost_of(prepared), space_dimensions(prepared.space)
    layers = sum(
        isinstance(module, (*LAYER_KINDS, nn.Embedding)) for module in prepared.context.workload.model.modules()
    )

    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(points(prepared))
    def agree(policy: Policy) -> None:
        found = cost(np.array([encode(dimensions, prepared.space.parameters(policy))]))[0]
        sampled = dict(zip(COUNTED, found, strict=False))
        built, bound = evaluated(prepared, policy), bounded(prepared, policy)
        assert built == bound
        assert sampled["bops"] == pytest.approx(built["bops"], rel=1e-9)
        assert sampled["parameters"] == pytest.approx(built["parameters"], rel=1e-9)
        assert sampled["packed_bytes"] == pytest.approx(built["packed_bytes"], abs=layers)  # bits fill whole bytes
        assert sampled["flops"] == pytest.approx(built["flops"], rel=0.05)  # batch-norm and pooling are scaled

    agree()


def test_evaluators_and_bounds_agree_on_masks_and_operators(tiny_spec, grids, one_thread):
    prepared = prepare(tiny_spec(space=SPACES["masks and operators"], quantization={"weights": grids}))

    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(points(prepared))
    def agree(policy: Policy) -> None:
        built, bound = evaluated(prepared, policy), bounded(prepared, policy)
        for name in ("flops", "bops", "parameters"):
            assert bound[name] == pytest.approx(built[name], rel=1e-12)
        if all(layer.operator == "dense" for layer in policy.layers.values()):
            assert bound["packed_bytes"] == built["packed_bytes"]

    agree()
