"""The space: its knobs, and parameters and policies as two descriptions of one point."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slimfront.core.errors import PolicyError
from slimfront.spaces.choices import SpaceChoices
from slimfront.spaces.knobs.kind import Knob
from slimfront.spaces.models.channel_groups import ChannelGroup
from slimfront.spaces.models.layers import Layer
from slimfront.spaces.policies.layer_policy import ACTIVATION_BITS, WEIGHT_BITS
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.space import Space


def layer(name: str, kind: str = "conv2d", sparsifiable: bool = True) -> Layer:
    return Layer(name, kind, name.rpartition(".")[0], 64, 640, sparsifiable)


LAYERS = [
    layer("stem", sparsifiable=False),
    layer("block.conv1"),
    layer("block.conv2"),
    layer("head.pool.conv"),
    layer("fc", "linear"),
]
GROUPS = [ChannelGroup("stem", 32, ("stem", "block.conv2")), ChannelGroup("block.conv1", 64, ("block.conv1",))]
EVERYTHING = SpaceChoices(
    weight_bits=(4, 8, 32),
    activation_bits=(8, 32),
    channel_sparsity=(0.0, 0.25, 0.5),
    weight_sparsity=(0.0, 0.5, "2:4"),
    width=(0.5, 1.0),
    recovery_epochs=(0, 2),
)


def names(space: Space) -> list[str]:
    return [knob.name for knob in space.knobs]


def several(values, **bounds) -> st.SearchStrategy[tuple]:
    return st.lists(values, min_size=1, unique=True, **bounds).map(tuple)


@st.composite
def points(draw) -> tuple[Space, dict]:
    """A space of random choices, and a random point of it."""
    fractions = st.floats(0, 0.999)
    distinct = {"max_size": 3, "unique_by": lambda value: round(value, 6) if isinstance(value, float) else value}
    choices = SpaceChoices(
        granularity=draw(st.sampled_from(["layer", "block", "type", "model"])),
        weight_bits=draw(several(st.sampled_from(WEIGHT_BITS))),
        activation_bits=draw(several(st.sampled_from(ACTIVATION_BITS))),
        channel_sparsity=draw(st.lists(fractions, min_size=1, **distinct).map(tuple)),
        weight_sparsity=draw(st.lists(fractions | st.just("2:4"), min_size=1, **distinct).map(tuple)),
        width=draw(st.lists(st.floats(0.001, 1), min_size=1, **distinct).map(tuple)),
        recovery_epochs=draw(several(st.integers(0, 5), max_size=3)),
        keep=draw(several(st.sampled_from(["fc", "block.*", "nothing"]), max_size=2)),
    )
    space = Space(LAYERS, GROUPS, choices, Recovery(1, 0.05, 2.0, 0.5))
    return space, {knob.name: draw(st.sampled_from(knob.choices)) for knob in space.knobs}


@given(points())
def test_parameters_are_the_inverse_of_policy(point):
    space, parameters = point
    policy = space.policy(parameters)
    back = space.parameters(policy)
    # Beside weights of other bits, activations in bfloat16 are full precision, which another choice may describe.
    halves = [name for name, choice in parameters.items() if name.endswith(".activation_bits") and choice == 16]
    assert {**back, **dict.fromkeys(halves, 16)} == parameters
    assert space.policy(back) == policy


@given(points())
def test_every_policy_decides_only_what_is_offered(point):
    space, parameters = point
    policy = space.policy(parameters)
    kept = set(policy.layers) | set(policy.channels)
    assert kept <= {member.name for member in space.layers} | {group.name for group in space.groups}
    assert policy.width in {round(width, 6) for width in space.choices["width"]}


@given(points())
def test_anchors_are_distinct_points_of_the_space(point):
    space, _ = point
    anchors = space.anchors()
    assert len({policy.digest for policy in anchors}) == len(anchors) >= 1
    assert all(space.policy(space.parameters(policy)) == policy for policy in anchors)


def test_a_policy_by_hand():
    space = Space(LAYERS[:2], GROUPS[1:], EVERYTHING, Recovery(1, 0.05, 2.0, 0.5))
    assert names(space) == [
        "0.student.width",
        "1.recovery.recovery_epochs",
        "2.block.conv1.channels",
        "3.stem.weight_bits",
        "4.stem.activation_bits",
        "5.stem.sparsity",
        "6.block.conv1.weight_bits",
        "7.block.conv1.activation_bits",
        "8.block.conv1.sparsity",
    ]
    chosen = dict(zip(names(space), [0.5, 2, 0.25, 4, 8, 0.5, 32, 8, "2:4"], strict=True))
    assert space.policy(chosen) == Policy(
        width=0.5,
        channels={"block.conv1": 0.25},
        layers={"stem": LayerPolicy(4, 8, 0.5), "block.conv1": LayerPolicy(32, 8, "2:4")},
        recovery=Recovery(2, 0.05, 2.0, 0.5),
    )


def test_knob_names_sort_in_their_order():
    space = Space(LAYERS, GROUPS, EVERYTHING)
    assert names(space)[0] == "00.student.width"
    assert names(space)[-1] == "18.fc.sparsity"
    assert names(space) == sorted(names(space))


@pytest.mark.parametrize(
    ("granularity", "shared"),
    [
        ("layer", [("stem",), ("block.conv1",), ("block.conv2",), ("head.pool.conv",), ("fc",)]),
        ("block", [("stem",), ("block.conv1", "block.conv2"), ("head.pool.conv",), ("fc",)]),
        ("type", [("stem", "block.conv1", "block.conv2", "head.pool.conv"), ("fc",)]),
        ("model", [("stem", "block.conv1", "block.conv2", "head.pool.conv", "fc")]),
    ],
)
def test_granularity_decides_which_layers_share_a_knob(granularity, shared):
    space = Space(LAYERS, GROUPS, SpaceChoices(granularity=granularity, weight_bits=(8, 32)))
    assert [knob.governs for knob in space.knobs] == shared
    policy = space.policy({knob.name: 8 for knob in space.knobs})
    assert policy == Policy(layers={member.name: LayerPolicy(weight_bits=8) for member in LAYERS})


def test_layers_that_are_kept_have_no_knobs_and_their_groups_neither():
    choices = SpaceChoices(weight_bits=(8, 32), channel_sparsity=(0.0, 0.5), keep=("fc", "*.conv2"))
    space = Space(LAYERS, GROUPS, choices)
    # The group of the stem holds block.conv2, so it goes too.
    assert names(space) == [
        "02.block.conv1.channels",
        "03.stem.weight_bits",
        "06.block.conv1.weight_bits",
        "09.head.pool.conv.weight_bits",
    ]


def test_two_of_four_is_offered_only_where_the_input_dimension_allows_it():
    offered = {
        knob.governs: knob.choices for knob in Space(LAYERS, [], SpaceChoices(weight_sparsity=(0.0, 0.5, "2:4"))).knobs
    }
    assert offered[("stem",)] == (0.0, 0.5)
    assert offered[("fc",)] == (0.0, 0.5, "2:4")


def test_two_of_four_is_offered_to_all_layers_of_a_knob_or_to_none():
    space = Space(LAYERS, [], SpaceChoices(granularity="type", weight_sparsity=(0.0, 0.5, "2:4")))
    assert [knob.choices for knob in space.knobs] == [(0.0, 0.5), (0.0, 0.5, "2:4")]


def test_a_layer_that_cannot_have_the_only_sparsity_stays_dense():
    policy = Space(LAYERS[:2], [], SpaceChoices(weight_sparsity=("2:4",))).policy({})
    assert policy == Policy(layers={"block.conv1": LayerPolicy(sparsity="2:4")})


def test_a_single_choice_is_no_knob_and_holds_everywhere():
    space = Space(LAYERS[:1], GROUPS[1:], SpaceChoices(weight_bits=(8,), width=(0.5,), channel_sparsity=(0.25,)))
    assert space.knobs == []
    fixed = Policy(width=0.5, channels={"block.conv1": 0.25}, layers={"stem": LayerPolicy(weight_bits=8)})
    assert space.policy({}) == fixed
    assert space.parameters(fixed) == {}
    assert space.anchors() == [fixed]


def test_anchors_start_uncompressed_and_try_each_structure_in_float_and_over_eight_bits():
    choices = SpaceChoices(weight_bits=(4, 8, 32), activation_bits=(8, 32), width=(0.5, 1.0), recovery_epochs=(0, 1, 3))
    space = Space(LAYERS[:1], [], choices)
    eight, four = {"stem": LayerPolicy(8, 8)}, {"stem": LayerPolicy(4, 8)}
    assert space.anchors() == [
        Policy(),
        Policy(layers=eight),
        Policy(layers=four),
        Policy(width=0.5, recovery=Recovery(3)),
        Policy(width=0.5, layers=eight, recovery=Recovery(3)),
    ]


def test_anchors_compute_floats_as_the_runtime_does_where_that_is_offered():
    choices = SpaceChoices(weight_bits=(8, 32), width=(0.5, 1.0), float_precision=("float16", "default", "float32"))
    eight = {"stem": LayerPolicy(8)}
    assert Space(LAYERS[:1], [], choices).anchors() == [
        Policy(),
        Policy(float_precision="default"),
        Policy(layers=eight, float_precision="default"),
        Policy(float_precision="float16"),
        Policy(layers=eight, float_precision="float16"),
        Policy(layers=eight),
        Policy(width=0.5, float_precision="default"),
        Policy(width=0.5, layers=eight, float_precision="default"),
    ]


def test_a_uniform_policy_takes_the_nearest_choice_offered():
    space = Space(LAYERS, [], SpaceChoices(weight_bits=(4, 16), weight_sparsity=(0.25, 0.5, "2:4")))
    policy = space.uniform({"weight_bits": 6, "sparsity": "2:4"})
    assert policy.layer("fc") == LayerPolicy(4, 32, "2:4")
    assert policy.layer("stem") == LayerPolicy(4, 32, 0.25)  # 2:4 is not offered there: nearest to dense
    assert space.uniform({}).layer("fc") == LayerPolicy(16, 32, 0.25)


SMALL = Space(LAYERS[:1], [], SpaceChoices(weight_bits=(4, 8, 32)))
KNOB = Knob("2.stem.weight_bits", "weight_bits", (4, 8, 32), ("stem",))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({KNOB.name: 8, "3.fc.weight_bits": 8}, r"^unknown knob '3.fc.weight_bits'$"),
        ({KNOB.name: 5}, r"^2.stem.weight_bits: 5 is not one of \[4, 8, 32\]$"),
        ({}, r"^2.stem.weight_bits: None is not one of \[4, 8, 32\]$"),
    ],
)
def test_parameters_that_do_not_fit_are_reported_in_one_line(parameters, problem):
    assert SMALL.knobs == [KNOB]
    with pytest.raises(PolicyError, match=problem):
        SMALL.policy(parameters)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(layers={"stem": LayerPolicy(weight_bits=5)}),
        Policy(layers={"stem": LayerPolicy(8, 8)}),
        Policy(layers={"elsewhere": LayerPolicy(weight_bits=8)}),
        Policy(width=0.5),
        Policy(channels={"stem": 0.5}),
        Policy(recovery=Recovery(1)),
    ],
)
def test_a_policy_outside_the_space_is_refused(policy):
    with pytest.raises(PolicyError):
        SMALL.parameters(policy)


def test_recovery_with_other_settings_is_outside_the_space():
    space = Space([], [], SpaceChoices(recovery_epochs=(0, 1)), Recovery(1, 0.05))
    assert space.parameters(Policy(recovery=Recovery(1, 0.05))) == {"1.recovery.recovery_epochs": 1}
    with pytest.raises(PolicyError, match="is not a point of this space"):
        space.parameters(Policy(recovery=Recovery(1, 0.01)))


STRUCTURAL = SpaceChoices(
    width=(1.0, 0.5),
    weight_sparsity=(0.0, 0.5, "<0.5std"),
    recovery_epochs=(0, 1),
    criterion=("l1", "taylor"),
    sparsity_scope=("layer", "global"),
    pruning_steps=(1, 4),
    channel_reduction=("drop", "merge"),
    channel_multiple=(8, 4),
    removed_blocks=(0, 1),
    operators=("dense", "separable", "groups=4", "rank=0.5"),
    depth=(1.0, 0.5),
)


def test_structural_knobs_come_last_and_only_where_they_fit():
    layers = [
        Layer("a.conv", "conv2d", "a", 576, 1, True, (8, 8, 3, 3)),
        Layer("a.point", "conv2d", "a", 48, 1, True, (6, 8, 1, 1)),
        Layer("a.deep", "conv2d", "a", 72, 1, False, (8, 1, 3, 3), groups=8),
        Layer("fc", "linear", "", 80, 1, True, (10, 8)),
    ]
    knobs = Space(layers, GROUPS, STRUCTURAL, blocks=("a",), ranking=("b", "a")).knobs
    offered = {knob.name.split(".", 1)[1]: knob.choices for knob in knobs[-10:]}
    assert offered == {
        "pruning.criterion": ("l1", "taylor"),
        "pruning.scope": ("layer", "global"),
        "pruning.steps": (1, 4),
        "pruning.reduction": ("drop", "merge"),
        "pruning.multiple": (8, 4),
        "a.removed": (0, 1),
        "a.conv.operator": ("dense", "separable", "groups=4", "rank=0.5"),
        "a.point.operator": ("dense", "rank=0.5"),
        "fc.operator": ("dense", "rank=0.5"),
        "student.depth": (1.0, 0.5),
    }


@given(st.data())
def test_structural_choices_survive_the_way_to_a_policy_and_back(data):
    layers = [Layer("a.conv", "conv2d", "a", 576, 1, True, (8, 8, 3, 3))]
    space = Space(layers, GROUPS, STRUCTURAL, blocks=("a", "b"), ranking=("b", "a"))
    policy = space.policy({knob.name: data.draw(st.sampled_from(knob.choices)) for knob in space.knobs})
    assert Policy.from_json(policy.to_json()) == policy
    assert space.policy(space.parameters(policy)) == policy


def test_anchors_try_every_operator_where_it_fits():
    layers = [Layer("conv", "conv2d", "", 576, 1, True, (8, 8, 3, 3)), Layer("fc", "linear", "", 80, 1, True, (10, 8))]
    anchors = Space(layers, [], STRUCTURAL).anchors()
    assert {anchor.layer("conv").operator for anchor in anchors} == {"dense", "separable", "groups=4", "rank=0.5"}
    assert {anchor.layer("fc").operator for anchor in anchors} == {"dense", "rank=0.5"}


def test_a_codebook_is_a_knob_that_decides_nothing_at_full_precision():
    space = Space(LAYERS, [], SpaceChoices("model", weight_bits=(3, 32), codebooks=("uniform", "k_means")))
    assert names(space) == ["2.model.weight_bits", "5.model.codebook"]
    coded = space.policy({"2.model.weight_bits": 3, "5.model.codebook": "k_means"})
    assert set(coded.layers.values()) == {LayerPolicy(3, codebook="k_means")}
    assert space.parameters(coded) == {"2.model.weight_bits": 3, "5.model.codebook": "k_means"}
    assert space.policy({"2.model.weight_bits": 32, "5.model.codebook": "k_means"}).is_uncompressed
    assert coded in space.anchors()


def test_ranges_at_run_time_are_a_knob_of_linear_layers():
    choices = SpaceChoices(weight_bits=(8, 32), activation_bits=(8, 32), activation_ranges=("static", "dynamic"))
    space = Space(LAYERS, [], choices)
    ranged = [knob for knob in space.knobs if knob.kind == "activation_range"]
    assert [knob.governs for knob in ranged] == [("fc",)]
    policy = space.uniform({"weight_bits": 8, "activation_bits": 8, "activation_range": "dynamic"})
    assert [name for name, layer in policy.layers.items() if layer.is_dynamic] == ["fc"]
    assert policy in space.anchors()
    for bits in ((32, 8), (8, 32), (8, 4)):  # which leave it nothing to decide
        assert LayerPolicy(*bits, activation_range="dynamic") == LayerPolicy(*bits)


def test_depth_removes_the_least_important_blocks_first():
    choices = SpaceChoices(depth=(1.0, 0.75, 0.5, 0.4), recovery_epochs=(0, 1))
    space = Space(LAYERS, [], choices, ranking=("c", "a", "d", "b"))
    depth = space.knobs[-1]
    assert depth.choices == (1.0, 0.75, 0.5)  # 0.4 of four blocks keeps as many as 0.5
    removed = [space.policy({space.knobs[0].name: 0, depth.name: d}).removed_blocks for d in depth.choices]
    assert removed == [(), ("c",), ("a", "c")]
    assert [anchor.removed_blocks for anchor in space.anchors()] == [(), ("a", "c"), ("c",)]


def test_anchors_begin_with_the_middle_of_each_kind_of_structure():
    choices = SpaceChoices(width=(1.0, 0.75, 0.5, 0.25), depth=(1.0, 0.75, 0.5), recovery_epochs=(0, 1))
    space = Space(LAYERS, GROUPS, choices, ranking=("c", "a", "d", "b"))
    assert [(anchor.width, len(anchor.removed_blocks)) for anchor in space.anchors()] == [
        (1.0, 0), (0.5, 0), (1.0, 2), (0.75, 0), (1.0, 1), (0.25, 0),
    ]  # fmt: skip


def test_depth_stands_next_to_single_blocks():
    space = Space(
        LAYERS, [], SpaceChoices(depth=(1.0, 0.5), removed_blocks=(0, 1)), blocks=("a", "b"), ranking=("b", "a")
    )
    policy = Policy(removed_blocks=("a",))
    assert space.policy(space.parameters(policy)) == policy
    assert space.parameters(Policy(removed_blocks=("b",)))[space.knobs[-1].name] == 0.5


def test_without_blocks_depth_is_no_knob():
    assert Space(LAYERS, [], SpaceChoices(depth=(1.0, 0.5))).knobs == []


def test_bfloat16_is_of_weights_and_activations_together():
    space = Space(LAYERS[:1], [], SpaceChoices(weight_bits=(8, 16, 32), activation_bits=(8, 16, 32)))
    weights, activations = names(space)
    offered = (8, 16, 32)
    found = {(w, a): space.policy({weights: w, activations: a}).layer(LAYERS[0].name) for w in offered for a in offered}
    decided = {pair: (layer.weight_bits, layer.activation_bits) for pair, layer in found.items()}
    assert {pair: layer for pair, layer in decided.items() if pair != layer} == {(8, 16): (8, 32), (32, 16): (32, 32)}
    assert [pair for pair, layer in found.items() if layer.is_bfloat16] == [(16, 16)]
    assert LayerPolicy(16, 16) in [anchor.layer(LAYERS[0].name) for anchor in space.anchors()]
    assert LayerPolicy(16, 8) not in [anchor.layer(LAYERS[0].name) for anchor in space.anchors()]
    only = Space(LAYERS[:1], [], SpaceChoices(weight_bits=(8, 16), activation_bits=(8, 16)))
    policy = only.policy(dict.fromkeys(names(only), 8) | {names(only)[1]: 16})
    assert only.policy(only.parameters(policy)) == policy


def test_sparsities_without_a_number_have_no_order_to_be_near_in():
    space = Space(LAYERS[1:2], [], SpaceChoices(weight_sparsity=("<0.5std", "2:4")))
    assert space.uniform({}).layer("block.conv1").sparsity == "<0.5std"
    assert space.uniform({"sparsity": "2:4"}).layer("block.conv1").sparsity == "2:4"
