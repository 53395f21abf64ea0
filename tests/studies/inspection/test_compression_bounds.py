"""Bounds of gain, against candidates that are really built at the ends of a space."""

import pytest
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.evaluators.evaluator import Context, LoweredCandidate
from slimfront.evaluators.registry import measure
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.choices import SpaceChoices
from slimfront.spaces.models.blocks import find_removable_blocks
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.resolved import effective_policy
from slimfront.spaces.space import Space
from slimfront.studies.inspection.compression_bounds import gains

BLOCKS = ("blocks.0", "blocks.3", "blocks.1", "blocks.5")
EVERYTHING = SpaceChoices(
    weight_bits=(4, 8, 32),
    activation_bits=(8, 32),
    channel_sparsity=(0.0, 0.5),
    width=(1.0, 0.25),
    depth=(1.0, 0.5),
    weight_sparsity=(0.0, 0.75, "2:4"),
    keep=("fc",),
)
BITS = LayerPolicy(4, 8)


@pytest.fixture(scope="module")
def groups(digits_workload):
    return find_channel_groups(digits_workload.model, digits_workload.example_input)[0]


@pytest.fixture(scope="module")
def space_of(digits_workload, groups):
    layers = find_layers(digits_workload.model, digits_workload.example_input)
    blocks = find_removable_blocks(digits_workload.model, digits_workload.example_input)
    return lambda choices: Space(layers, groups, choices, blocks=blocks, ranking=BLOCKS)


def built(workload, groups, policy):
    """What the evaluator counts of a candidate."""
    model = pruned_copy(workload.model, workload.example_input, policy, groups)
    target = load_target("cpu-openvino")
    context = Context(workload=workload, target=target, runtime=get_runtime(target.runtime))
    counted = measure(LoweredCandidate(Candidate(effective_policy(policy), model)), context, "counted")
    return {measurement.name: measurement.value for measurement in counted}


def found(workload, space, technique):
    return {gain.metric: gain.after for gain in gains(workload.model, workload.example_input, space) if gain.technique == technique}  # fmt: skip


def test_all_together_is_what_a_candidate_at_the_ends_of_the_space_has(digits_workload, groups, space_of):
    space = space_of(EVERYTHING)
    layers = {layer.name: LayerPolicy(4, 8, sparsity=0.75) for layer in space.layers}
    assert "fc" not in layers
    channels = {group.name: 0.5 for group in groups}
    policy = Policy(width=0.25, channels=channels, layers=layers, removed_blocks=BLOCKS[:2])
    assert found(digits_workload, space, "all together") == built(digits_workload, groups, policy)


@pytest.mark.parametrize(
    ("technique", "policy"),
    [
        ("blocks", Policy(removed_blocks=BLOCKS[:2])),
        ("weight sparsity", Policy(layers={"blocks.0.conv1": LayerPolicy(sparsity=0.75)})),
        ("bits", Policy(layers={"blocks.0.conv1": BITS})),
    ],
)
def test_each_technique_alone(digits_workload, groups, space_of, technique, policy):
    keep = ("stem*", "blocks.[1-5]*", "blocks.0.conv2", "fc") if policy.layers else ()
    space = space_of(SpaceChoices(keep=keep, **EVERYTHING))
    expected, before = built(digits_workload, groups, policy), built(digits_workload, groups, Policy())
    changed = {name: value for name, value in expected.items() if value != before[name]}
    assert found(digits_workload, space, technique) == changed


@pytest.mark.parametrize("operator", ["separable", "groups=4", "rank=0.25"])
def test_operators_are_counted_as_they_are_built(digits_workload, groups, space_of, operator):
    space = space_of(SpaceChoices(operators=("dense", operator), keep=("stem*", "fc", "*shortcut*")))
    policy = Policy(layers={layer.name: LayerPolicy(operator=operator) for layer in space.layers})
    expected, counted = built(digits_workload, groups, policy), found(digits_workload, space, "operators")
    assert {name: counted[name] for name in ("flops", "bops", "parameters")} == {
        name: pytest.approx(expected[name], rel=1e-12) for name in ("flops", "bops", "parameters")
    }
    assert counted["packed_bytes"] == pytest.approx(expected["packed_bytes"], rel=0.01)


def test_a_space_without_a_technique_has_no_gain_by_it(digits_workload, space_of):
    space = space_of(SpaceChoices(weight_bits=(8, 32)))
    reported = gains(digits_workload.model, digits_workload.example_input, space)
    assert {(gain.technique, gain.metric) for gain in reported} == {
        (technique, metric) for technique in ("bits", "all together") for metric in ("bops", "packed_bytes")
    }
    assert reported[0].how == "weight bits 8"
