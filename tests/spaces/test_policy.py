"""A policy is its JSON: it goes there and back, equal policies are written alike, and old files stay readable."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slimfront.core.errors import PolicyError
from slimfront.spaces.policies.float_precision import FLOAT_PRECISIONS
from slimfront.spaces.policies.layer_policy import ACTIVATION_BITS, WEIGHT_BITS
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.pruning import Pruning
from slimfront.spaces.policies.sparsity import zeroed_share

GOLDEN = Path(__file__).parent / "golden" / "policy-schema-1.json"
GOLDEN_POLICY = Policy(
    width=0.75,
    channels={"stem": 0.5, "blocks.0.conv1": 0.25},
    layers={
        "fc": LayerPolicy(sparsity="2:4"),
        "blocks.0.conv1": LayerPolicy(weight_bits=4, activation_bits=8, sparsity=1 / 3),
    },
    recovery=Recovery(epochs=2),
)

# On the grid of six decimals that policies are rounded to.
fractions = st.integers(0, 999_999).map(lambda millionths: millionths / 1e6)
names = st.text(min_size=1, max_size=8)
layers = st.builds(
    LayerPolicy,
    weight_bits=st.sampled_from(WEIGHT_BITS),
    activation_bits=st.sampled_from(ACTIVATION_BITS),
    sparsity=fractions | st.just("2:4"),
)
positive = st.floats(1e-6, 1e6)
recoveries = st.builds(
    Recovery, epochs=st.integers(0, 100), learning_rate=positive, temperature=positive, alpha=st.floats(0, 1)
)
policies = st.builds(
    Policy,
    width=st.integers(1, 1_000_000).map(lambda millionths: millionths / 1e6),
    channels=st.dictionaries(names, fractions, max_size=5),
    layers=st.dictionaries(names, layers, max_size=5),
    recovery=recoveries,
    float_precision=st.sampled_from(FLOAT_PRECISIONS),
)


@given(policies)
def test_json_round_trip(policy):
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert again.to_json() == policy.to_json()
    assert (again.digest, hash(again)) == (policy.digest, hash(policy))


@given(policies)
def test_pickle_round_trip(policy):
    assert pickle.loads(pickle.dumps(policy)) == policy


@given(policies, policies)
def test_equal_policies_and_only_those_are_written_alike(a, b):
    assert (a == b) == (a.to_json() == b.to_json()) == (a.digest == b.digest)


@given(policies, st.randoms(use_true_random=False))
def test_the_order_decisions_are_given_in_does_not_matter(policy, random):
    def shuffled(decisions):
        items = list(decisions.items())
        return dict(random.sample(items, len(items)))

    again = replace(policy, channels=shuffled(policy.channels), layers=shuffled(policy.layers))
    assert again.to_json() == policy.to_json()


@given(policies, names)
def test_decisions_that_decide_nothing_are_dropped(policy, name):
    channels = {**policy.channels} if name in policy.channels else {**policy.channels, name: 0.0}
    named = {**policy.layers} if name in policy.layers else {**policy.layers, name: LayerPolicy()}
    assert replace(policy, channels=channels, layers=named) == policy


def test_recovery_without_epochs_is_no_recovery():
    assert Policy(recovery=Recovery(epochs=0, learning_rate=0.5)).is_uncompressed


def test_the_uncompressed_policy_is_only_its_schema():
    assert Policy().to_json() == '{"schema":1}'
    assert Policy().is_uncompressed
    assert not GOLDEN_POLICY.is_uncompressed


def test_schema_1_is_read_and_written_as_it_always_was():
    text = GOLDEN.read_text().strip()
    assert Policy.from_json(text) == GOLDEN_POLICY
    assert GOLDEN_POLICY.to_json() == text


def test_the_digest_is_of_the_canonical_json():
    assert GOLDEN_POLICY.digest == hashlib.sha256(GOLDEN.read_text().strip().encode()).hexdigest()[:16]
    assert Policy().digest == hashlib.sha256(b'{"schema":1}').hexdigest()[:16]


def test_a_layer_not_named_is_left_alone():
    assert GOLDEN_POLICY.layer("fc").sparsity == "2:4"
    assert GOLDEN_POLICY.layer("head") == LayerPolicy(32, 32, 0.0)


def test_width_and_channel_sparsity_multiply():
    assert GOLDEN_POLICY.kept_fraction("blocks.0.conv1") == pytest.approx(0.75 * 0.75)
    assert GOLDEN_POLICY.kept_fraction("head") == 0.75


def test_fractions_are_rounded_to_six_decimals():
    assert Policy(channels={"a": 1 / 3}) == Policy(channels={"a": 0.333333})


def test_decisions_cannot_be_changed():
    with pytest.raises(TypeError):
        GOLDEN_POLICY.channels["stem"] = 0.1


BAD = {
    "not JSON": ("{", "policy is not JSON"),
    "lists in lists": ("[" * 100_000, "policy is nested more than 50 deep"),
    "objects in objects": ('{"a":' * 50_000, "policy is nested more than 50 deep"),
    "5,000 digits": (f'{{"schema":1,"width":{"9" * 5000}}}', "policy is not JSON: a number of 5,000 characters"),
    "5,000 characters": (f'{{"schema":1,"width":"{"x" * 5000}"}}', "width must lie in (0, 1], not 'xxx"),
    "a list": ("[]", "policy must be a JSON object"),
    "no schema": ("{}", "policy schema must be 1, not None"),
    "another schema": ('{"schema":2}', "policy schema must be 1, not 2"),
    "unknown key": ('{"schema":1,"depth":3}', "policy: unknown key 'depth'; known are"),
    "unknown key of a layer": ('{"schema":1,"layers":{"fc":{"bits":4}}}', "layer fc: unknown key 'bits'"),
    "unknown key of recovery": ('{"schema":1,"recovery":{"lr":1}}', "recovery: unknown key 'lr'"),
    "width 0": ('{"schema":1,"width":0}', "width must lie in (0, 1], not 0"),
    "width 2": ('{"schema":1,"width":2}', "width must lie in (0, 1], not 2"),
    "all channels": ('{"schema":1,"channels":{"a":1}}', "channel sparsity of a must lie in [0, 1), not 1"),
    "7 bits": (
        '{"schema":1,"layers":{"a":{"weight_bits":7}}}',
        "weight_bits must be one of [2, 3, 4, 5, 6, 8, 16, 32]",
    ),
    "2 activation bits": ('{"schema":1,"layers":{"a":{"activation_bits":2}}}', "activation_bits must be one of [4, 6,"),
    "sparsity 4:8": (
        '{"schema":1,"layers":{"a":{"sparsity":"4:8"}}}',
        'sparsity must be a number in [0, 1), "2:4" or a threshold',
    ),
    "less than no epoch": (
        '{"schema":1,"recovery":{"epochs":-0.5}}',
        "recovery epochs must be a number >= 0, not -0.5",
    ),
    "no learning": ('{"schema":1,"recovery":{"epochs":1,"learning_rate":0}}', "recovery learning_rate must be > 0"),
    "no temperature": ('{"schema":1,"recovery":{"epochs":1,"temperature":0}}', "recovery temperature must be > 0"),
    "alpha 2": ('{"schema":1,"recovery":{"epochs":1,"alpha":2}}', "recovery alpha must lie in [0, 1], not 2"),
}


@pytest.mark.parametrize(("text", "problem"), BAD.values(), ids=BAD)
def test_a_bad_policy_is_one_line(text, problem):
    with pytest.raises(PolicyError) as caught:
        Policy.from_json(text)
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [{"layers": [1]}, {"layers": {"a": 3}}, {"channels": [1]}, {"recovery": {"epochs": 1, "alpha": "x"}}],
    ids=json.dumps,
)
def test_a_policy_with_a_part_of_the_wrong_type_is_a_policy_error(document):
    with pytest.raises(PolicyError):
        Policy.from_json(json.dumps({"schema": 1, **document}))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (lambda: Policy(channels={"a": 1e-9}), Policy),
        (lambda: Policy(recovery=Recovery(1, 1)), lambda: Policy(recovery=Recovery(1, 1.0))),
    ],
    ids=["rounds to nothing", "learning rate 1"],
)
def test_equal_decisions_have_one_digest(a, b):
    assert a().digest == b().digest


@pytest.mark.parametrize("bits", [8.0, True, "8"], ids=repr)
def test_bits_are_whole_numbers(bits):
    with pytest.raises(PolicyError, match="weight_bits must be one of"):
        LayerPolicy(bits)


@pytest.mark.parametrize(
    "policy",
    [
        lambda: Policy(channels={"a": 0.9999999}),
        lambda: Policy(width=1e-9),
        lambda: Policy(layers={"a": LayerPolicy(sparsity=0.9999999)}),
    ],
    ids=["channels", "width", "sparsity"],
)
def test_what_rounds_out_of_range_is_refused_at_once(policy):
    with pytest.raises(PolicyError, match="must"):
        policy()


@pytest.mark.parametrize(("sparsity", "share"), [(0.25, 0.25), ("2:4", 0.5), ("<1std", 0.6827), ("<2std", 0.9545)])
def test_the_share_of_weights_set_to_zero(sparsity, share):
    assert zeroed_share(sparsity) == pytest.approx(share, abs=1e-4)


STRUCTURE = GOLDEN.with_name("policy-schema-1-structure.json")
STRUCTURE_POLICY = Policy(
    width=0.5,
    layers={"fc": LayerPolicy(sparsity="<0.5std"), "stem": LayerPolicy(sparsity=0.5, operator="rank=0.25")},
    recovery=Recovery(epochs=1),
    pruning=Pruning("taylor", "global", 4, "merge"),
    removed_blocks=("blocks.3", "blocks.1"),
)


def test_the_golden_file_of_structural_decisions():
    text = STRUCTURE.read_text().strip()
    assert Policy.from_json(text) == STRUCTURE_POLICY
    assert STRUCTURE_POLICY.to_json() == text


QUANTIZATION = GOLDEN.with_name("policy-schema-1-quantization.json")
QUANTIZATION_POLICY = Policy(
    layers={
        "fc": LayerPolicy(4, 8, codebook="k_means"),
        "stem": LayerPolicy(3, codebook="power_of_two"),
        "head": LayerPolicy(4, 8, activation_range="dynamic"),
    }
)


def test_the_golden_file_of_ways_to_quantize():
    text = QUANTIZATION.read_text().strip()
    assert Policy.from_json(text) == QUANTIZATION_POLICY
    assert QUANTIZATION_POLICY.to_json() == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"schema":1,"pruning":{"criterion":7}}', "pruning criterion must be a name, not 7"),
        ('{"schema":1,"pruning":{"steps":0}}', "pruning steps must be a whole number >= 1, not 0"),
        ('{"schema":1,"pruning":{"stride":2}}', "pruning: unknown key 'stride'; known are"),
        ('{"schema":1,"removed_blocks":"a"}', "removed_blocks must be a list of module paths, not 'a'"),
        ('{"schema":1,"layers":{"a":{"operator":"rank=2"}}}', "operator: 'rank=2' is not dense, separable, groups=G"),
        ('{"schema":1,"layers":{"a":{"operator":"groups=1"}}}', "operator: 'groups=1' is not dense"),
        ('{"schema":1,"layers":{"a":{"activation_range":"wide"}}}', "activation_range must be one of static, dynamic"),
        ('{"schema":1,"layers":{"a":{"codebook":"gray"}}}', "codebook must be one of uniform, power_of_two, k_means"),
        ('{"schema":1,"layers":{"a":{"sparsity":"<0std"}}}', "sparsity must be a number in [0, 1)"),
    ],
)
def test_a_bad_structural_decision_is_one_line(text, problem):
    with pytest.raises(PolicyError) as caught:
        Policy.from_json(text)
    assert str(caught.value).startswith(problem)


def test_the_precision_of_floats_is_part_of_a_policy_but_does_not_change_the_model():
    assert Policy(float_precision="float32").to_json() == '{"schema":1}', "policies of before ran in float32"
    policy = Policy(float_precision="default")
    assert policy.is_free
    assert not policy.is_uncompressed
    assert not Policy(width=0.5, float_precision="default").is_free
    with pytest.raises(PolicyError, match="float_precision must be one of float32, default, bfloat16, float16"):
        Policy.from_json('{"schema": 1, "float_precision": "f32"}')
