"""Policies in words."""

from collections.abc import Mapping
from dataclasses import dataclass

from slimfront.spaces.policies.module_choices import ModuleChoices, module_choices
from slimfront.spaces.policies.policy import MODULE_CHOICES, LayerPolicy, Policy
from slimfront.spaces.policies.pruning import Pruning
from slimfront.studies.wording import layer_rows, short_text, width_text


def test_a_layers_row_shows_bits_and_sparsity_and_what_else_is_not_neutral():
    layers = {
        "a": LayerPolicy(4, 8, 0.5, codebook="k_means"),
        "b": LayerPolicy(8, 8, "2:4", operator="rank=0.5", activation_range="dynamic"),
        "c": LayerPolicy(activation_bits=8),
        "gone.d": LayerPolicy(8, 8),
    }
    assert layer_rows(Policy(layers=layers, removed_blocks=("gone",))) == [
        ("a", "4, k_means", "8", "0.5"),
        ("b", "8", "8, dynamic", "2:4, rank=0.5"),
        ("c", "32", "8", "0"),
    ]


def test_what_holds_for_the_whole_model_is_one_line():
    policy = Policy(
        0.5, removed_blocks=("b.1",), pruning=Pruning("taylor"), extensions={"clip": {"": 2.0}, "rank": {"fc": 3}}
    )
    expected = "0.5 of every channel group kept; without b.1; pruned with criterion taylor; clip 2.0; rank 3 of fc"
    assert width_text(policy) == expected
    assert width_text(Policy()) == "full"


@dataclass(frozen=True)
class Clipped(Policy):
    """A policy with a field that a kind of knob has added."""

    clips: Mapping[str, int] = module_choices((0, 2, 3), 0)


def test_choices_of_modules_that_no_table_has_a_column_for_are_said_too(monkeypatch):
    monkeypatch.setitem(MODULE_CHOICES, "clips", ModuleChoices((0, 2, 3), 0))
    assert width_text(Clipped(clips={"conv": 2, "fc": 0}, embeddings={"words": 4})) == "full; clips 2 of conv"


def test_a_count_just_below_a_factor_is_not_written_with_an_exponent():
    assert [short_text(value, "count") for value in (999, 999_400, 999_600, 1_000_000)] == [
        "999",
        "999 k",
        "1 M",
        "1 M",
    ]


def test_tables_and_reports_show_the_bits_of_tables_and_recurrent_matrices():
    policy = Policy(embeddings={"words": 4}, recurrent={"rnn": "int8"})
    assert [(row[0], row[1]) for row in layer_rows(policy)] == [("rnn", "8"), ("words", "4")]
