"""Kinds of knobs: one contract for every kind in the registry, and a kind from outside slimfront."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from slimfront.compression.pruning.prune import is_structurally_changed, pruned_copy
from slimfront.core.errors import PolicyError, StudyFileError
from slimfront.search.sampler.dimensions import guessed_damage
from slimfront.search.trials.given_workload import pickled_registrations, take_registrations
from slimfront.search.trials.recovered import structure
from slimfront.spaces.choices import SpaceChoices
from slimfront.spaces.knobs.kind import ExtensionKind, Knob, KnobKind
from slimfront.spaces.knobs.registry import KNOB_KINDS, register
from slimfront.spaces.models.layers import Layer
from slimfront.spaces.policies.draft import PolicyDraft
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.recovery import Recovery
from slimfront.spaces.space import Space
from slimfront.studies.study_file.spec import StudySpec
from torch import nn

OFFERED = {
    "width": (1.0, 0.5),
    "recovery_epochs": (0, 1, 4),
    "channel_sparsity": (0.0, 0.25),
    "weight_bits": (32, 16, 4),
    "activation_bits": (32, 16, 8),
    "weight_sparsity": (0.0, 0.5, "2:4", "<0.5std"),
    "criterion": ("l2", "taylor"),
    "sparsity_scope": ("layer", "global"),
    "pruning_steps": (1, 4),
    "channel_reduction": ("drop", "merge"),
    "channel_multiple": (8, 4),
    "removed_blocks": (0, 1),
    "operators": ("dense", "separable", "rank=0.5"),
    "codebooks": ("uniform", "k_means"),
    "activation_ranges": ("static", "dynamic"),
    "weight_group_size": (0, 32, 64, 128),
    "depth": (1.0, 0.5),
    "float_precision": ("default", "float32", "bfloat16"),
    "recurrent_weights": ("float32", "int8", "dynamic"),
    "embedding_bits": (32, 8, 4),
}
GOVERNS = {
    "layer": ("a.conv", "fc"),
    "group": ("a.conv",),
    "block": ("a",),
    "ranking": ("b", "a"),
    "model": (),
}
DECIDING = Policy(
    layers={"a.conv": LayerPolicy(4, 8), "fc": LayerPolicy(4, 8), "other": LayerPolicy(4, 8, 0.5)},
    channels={"other": 0.5},
    recovery=Recovery(2),
)
"""A policy in which every kind has something to decide."""

KINDS = [pytest.param(kind, id=kind.name) for kind in KNOB_KINDS.values()]


def base_of(kind: KnobKind, choice: object) -> Policy:
    """The policy to write a choice into: bfloat16 is of weights and activations together, groups are of weights alone."""
    if kind.name == "weight_group_size":
        return replace(DECIDING, layers={name: LayerPolicy(4) for name in GOVERNS["layer"]})
    if kind.name != "activation_bits" or choice != 16:
        return DECIDING
    return replace(DECIDING, layers={name: LayerPolicy(16) for name in GOVERNS["layer"]})


def knob_of(kind: KnobKind) -> Knob:
    return Knob(f"0.{kind.name}", kind.name, OFFERED[kind.key], GOVERNS[kind.subject])


def written(policy: Policy, kind: KnobKind, choice) -> Policy:
    draft = PolicyDraft.of(policy)
    kind.write(draft, knob_of(kind).governs, choice)
    return draft.policy()


def test_every_kind_has_an_example_here():
    assert {kind.key for kind in KNOB_KINDS.values()} == set(OFFERED)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again(kind):
    for choice in OFFERED[kind.key]:
        assert kind.read(written(base_of(kind, choice), kind, choice), knob_of(kind)) == choice


@pytest.mark.parametrize("kind", KINDS)
def test_an_untouched_policy_reads_as_neutral(kind):
    assert kind.read(Policy(), knob_of(kind)) == kind.neutral
    assert written(Policy(), kind, kind.neutral).is_uncompressed


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_of_a_policy_is_that_policy(kind):
    for choice in OFFERED[kind.key]:
        policy = written(base_of(kind, choice), kind, choice)
        assert PolicyDraft.of(policy).policy() == policy == Policy.from_json(policy.to_json())


@pytest.mark.parametrize("kind", KINDS)
def test_the_neutral_choice_is_guessed_to_do_least(kind):
    guesses = guessed_damage(kind.name, OFFERED[kind.key], kind.neutral)
    assert min(guesses.values()) == guesses[kind.neutral] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_file_takes_what_a_kind_offers_and_nothing_else(kind):
    adapter = TypeAdapter(kind.type)
    assert [adapter.validate_python(choice) for choice in OFFERED[kind.key]] == list(OFFERED[kind.key])
    with pytest.raises(ValueError, match=r"."):
        adapter.validate_python([])
    assert adapter.validate_python(kind.neutral) == kind.neutral


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values[0].name != "codebook"])
def test_recovered_weights_depend_on_all_decisions_but_those_that_quantize(kind):
    base = replace(DECIDING, recurrent={"rnn": "int8"}, embeddings={"table": 8}, float_precision="default")
    structures = {
        structure(written(base, kind, choice))
        for choice in OFFERED[kind.key]
        if choice or kind.key != "recovery_epochs"
    }
    assert (len(structures) == 1) == kind.is_quantizing
    assert None not in structures


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_says_what_it_is(kind):
    assert kind.meaning.endswith(".")
    assert kind.label
    assert kind.column in KNOB_KINDS
    assert set(kind.needs) <= set(OFFERED[kind.key])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_off_is_no_knob(kind):
    layers = [
        Layer("a.conv", "conv2d", "a", 576, 1, True, (8, 8, 3, 3)),
        Layer("fc", "linear", "", 80, 1, True, (10, 8)),
        Layer("rnn", "lstm", "", 512, 1, False, (32, 16)),
        Layer("table", "embedding", "", 80, 0, False, (10, 8)),
    ]
    searched = Space(layers, [], SpaceChoices(**{kind.key: OFFERED[kind.key]}), blocks=["a"], ranking=["b", "a"])
    assert {knob.kind for knob in searched.knobs} == ({kind.name} if kind.subject != "group" else set())
    assert Space(layers, [], SpaceChoices(), blocks=["a"], ranking=["b", "a"]).knobs == []


@given(st.data())
def test_kinds_write_in_any_order(data):
    """What one kind writes leaves what others wrote as it is."""
    kinds = data.draw(st.permutations(list(KNOB_KINDS.values())))
    chosen = {kind.name: data.draw(st.sampled_from(OFFERED[kind.key])) for kind in kinds}
    policies = []
    for order in (kinds, KNOB_KINDS.values()):
        draft = PolicyDraft(Recovery(1, 0.05))
        for kind in order:
            kind.write(draft, knob_of(kind).governs, chosen[kind.name])
        policies.append(draft.policy())
    assert policies[0] == policies[1]


@dataclass(frozen=True, kw_only=True)
class Clipping(ExtensionKind):
    """Clips every weight of a model to a number of its standard deviations; 0 leaves it whole."""

    def compress(self, model: nn.Module, policy: Policy) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                most = float(policy.extensions[self.name][""]) * parameter.std()
                parameter.clamp_(-most, most)

    def guess(self, choice, choices: Sequence) -> float:
        return 1 / choice if choice else 0.0


@pytest.fixture
def clipping(monkeypatch):
    """A kind registered by a program, and gone again after the test."""
    kind = Clipping(
        name="clip", key="weight_clip", type=float, neutral=0.0, meaning="Clips weights.", label="clip", subject="model"
    )
    monkeypatch.setattr(KNOB_KINDS, "_own", dict(KNOB_KINDS._own))
    register(kind)
    yield kind
    monkeypatch.undo()
    from slimfront.studies.study_file.space_spec import SpaceSpec

    del SpaceSpec.__pydantic_fields__[kind.key]
    SpaceSpec.model_rebuild(force=True)
    StudySpec.model_rebuild(force=True)


STUDY = {
    "study": "s", "workload": "w.py:f", "target": "cpu-openvino", "objectives": ["accuracy_drop", "latency_ms"],
    "budget": {"trials": 2},
}  # fmt: skip


def study(**space) -> StudySpec:
    return StudySpec.from_document({**STUDY, "space": space}, "study.yaml", Path())


def test_a_registered_kind_is_searched_stored_and_done(clipping):
    spec = study(weight_clip=[0.0, 2.0], weight_bits=[8, 32])
    assert StudySpec.from_json(spec.to_json()).space.choices()["weight_clip"] == (0.0, 2.0)
    space = Space([Layer("0", "linear", "", 16, 1, True, (4, 4))], [], spec.space.choices())
    assert [knob.name for knob in space.knobs] == ["2.0.weight_bits", "5.model.clip"]
    clipped = Policy(extensions={"clip": {"": 2.0}}, layers={"0": LayerPolicy(8)})
    assert space.policy({"2.0.weight_bits": 8, "5.model.clip": 2.0}) == clipped == Policy.from_json(clipped.to_json())
    assert space.parameters(clipped) == {"2.0.weight_bits": 8, "5.model.clip": 2.0}
    assert {policy.digest for policy in space.anchors()} >= {Policy().digest, clipped.digest}
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data[0, 0] = 100.0
    assert float(pruned_copy(model, torch.zeros(1, 4), clipped, [])[0].weight.max()) < 100
    assert is_structurally_changed(clipped, [])
    assert not is_structurally_changed(Policy(layers={"0": LayerPolicy(8)}), [])


def test_a_bad_choice_of_a_registered_kind_names_file_and_key(clipping):
    with pytest.raises(StudyFileError, match=r"^study.yaml: space.weight_clip.1: must be a number, not 'much'$"):
        study(weight_clip=[0.0, "much"])


def test_without_its_package_a_policy_of_a_kind_is_read_and_not_compressed_by():
    policy = Policy.from_json('{"schema": 1, "extensions": {"clip": {"": 2.0}}}')
    assert policy.extensions == {"clip": {"": 2.0}}
    with pytest.raises(PolicyError, match=r"^unknown kind of knob 'clip'; known are .*width"):
        pruned_copy(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4), policy, [])
    with pytest.raises(StudyFileError, match=r"space.weight_clip: unknown key"):
        study(weight_clip=[0.0, 2.0], weight_bits=[8, 32])


@pytest.mark.parametrize("extensions", ['{"clip": 2.0}', '{"clip": {"": []}}', '{"clip": {"": true}}', "[]"])
def test_extensions_that_are_none_are_refused_in_one_line(extensions):
    with pytest.raises(PolicyError) as caught:
        Policy.from_json(f'{{"schema": 1, "extensions": {extensions}}}')
    assert "\n" not in str(caught.value)


def test_a_taken_name_or_key_is_refused(clipping):
    with pytest.raises(PolicyError, match=r"^kind of knob 'clip' cannot have the key 'other'; .*clip: weight_clip"):
        register(replace(clipping, key="other"))
    with pytest.raises(
        PolicyError, match=r"^kind of knob 'other' cannot have the key 'weight_clip'; .*clip: weight_clip"
    ):
        register(replace(clipping, name="other"))
    with pytest.raises(PolicyError, match=r"^kind of knob 'width' is already registered; known are .*width"):
        register(replace(clipping, name="width", key="width"))
    assert list(KNOB_KINDS.registered) == ["clip"]


def test_a_cell_that_runs_again_replaces_its_kind(clipping):
    register(replace(clipping, label="clipped"))
    assert KNOB_KINDS["clip"].label == "clipped"


def test_a_registered_kind_goes_to_workers(clipping):
    pickled = pickled_registrations()
    del KNOB_KINDS._own[clipping.name]
    assert "clip" not in KNOB_KINDS
    take_registrations(pickled)
    assert (KNOB_KINDS["clip"].name, KNOB_KINDS["clip"].key) == ("clip", "weight_clip")


def test_an_unknown_key_names_the_known_ones():
    with pytest.raises(PolicyError, match=r"^no kind of knob has the key 'bits'; known are activation_bits, "):
        SpaceChoices(bits=(1, 2))


@pytest.mark.parametrize(("name", "loaded"), [("clip", "a kind"), ("wrong", "clipping")])
def test_an_entry_point_that_loads_something_else_is_named(clipping, monkeypatch, name, loaded):
    monkeypatch.setitem(KNOB_KINDS._own, name, clipping if loaded == "clipping" else loaded)
    with pytest.raises(PolicyError, match=rf"^the entry point '{name}' in slimfront.knobs has to load a KnobKind"):
        KNOB_KINDS[name]
