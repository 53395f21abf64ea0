"""What a layer ran in, in words, and which bits only save storage."""

import pytest
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.files.executed import precision_of, ran_in, storage_only
from slimfront.studies.wording import layer_rows


@pytest.mark.parametrize(
    ("bits", "precision", "expected"),
    [
        ((8, 8), "i8", "i8"),
        ((8, 8), "f32", "f32, 8 bits storage-only"),
        ((4, 8), "i8", "i8, 4 bits storage-only"),
        ((4, 8), "i4", "i4"),
        ((4, 32), "f32", "f32, 4 bits storage-only"),
        ((16, 32), "f32", "f32, 16 bits storage-only"),
        ((16, 32), "bf16", "bf16"),
        ((16, 16), "f32", "f32, 16 bits storage-only"),
        ((16, 16), "bf16", "bf16"),
        ((32, 32), "f32", "f32"),
        ((8, 8), None, "not reported"),
    ],
    ids=str,
)
def test_bits_without_a_kernel_are_storage_only(bits, precision, expected):
    assert ran_in(LayerPolicy(*bits), precision) == expected


def test_the_layers_whose_bits_no_kernel_computes_with():
    policy = Policy(layers={"a": LayerPolicy(8, 8), "b": LayerPolicy(4, 8), "c": LayerPolicy(8, 8)})
    assert storage_only(policy, {"a": "i8", "b": "i8", "c": "f32"}) == ["b", "c"]
    assert storage_only(policy, {}) == []


def test_weights_by_a_codebook_are_storage_only_whatever_runs_them():
    layer = LayerPolicy(8, 8, codebook="k_means")
    assert ran_in(layer, "i8") == "i8, 8 bits storage-only"
    assert storage_only(Policy(layers={"a": layer}), {"a": "f32"}) == ["a"]


def test_a_factored_layer_ran_in_the_wider_of_what_its_factors_ran_in():
    executed = {"a.0": "i8", "a.1": "f32", "b.0": "i8", "b.1": "i8"}
    assert [precision_of(name, executed) for name in ("a", "b", "c")] == ["f32", "i8", None]
    policy = Policy(layers={name: LayerPolicy(8, 8, operator="rank=0.5") for name in ("a", "b")})
    assert storage_only(policy, executed) == ["a"]


def test_layers_of_removed_blocks_have_no_row():
    policy = Policy(layers={"blocks.0.fc": LayerPolicy(8), "blocks.1.fc": LayerPolicy(8)}, removed_blocks=("blocks.1",))
    assert [row[0] for row in layer_rows(policy, {"blocks.0.fc": "f32"})] == ["blocks.0.fc"]
