"""Grids by groups of inputs: by hand, as properties, and what is kept of old policies."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slimfront.compression.packing.packed import pack, unpack
from slimfront.compression.packing.packed_file import (
    counted_bytes,
    digest,
    load_packed,
    packed_bytes,
    recorded_digest,
    save_packed,
    weights_of,
)
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.quantization.weight_grids import GroupedWeight
from slimfront.hardware_profiles.runtimes.onnx.passes.weight_groups import packed_bytes as nibbles
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.quantization_scheme import Scheme
from torch import nn

GRIDS = [Scheme(), Scheme(group_grids="affine")]


def weight(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def test_groups_by_hand():
    """32 inputs on steps of 0.1, and two that are left on steps of 2 or, affine, 1 + 7 / 15."""
    row = torch.cat([torch.linspace(-0.7, 0.66, 32), torch.tensor([14.0, -8.0])])[None]
    symmetric = GroupedWeight(4, 32).quantized(row, None)
    np.testing.assert_allclose(symmetric.grid.scale, [[0.1, 2.0]], rtol=1e-6)
    assert symmetric.integers[0, [0, 31, 32, 33]].tolist() == [-7, 7, 7, -4]
    assert not symmetric.grid.zero_point.any()
    affine = GroupedWeight(4, 32, GRIDS[1]).quantized(row, None)
    np.testing.assert_allclose(affine.grid.scale[0, 1], 22 / 15, rtol=1e-6)
    assert affine.grid.zero_point[0, 1] == -3  # -8 + 8 / (22 / 15), rounded
    np.testing.assert_allclose(affine.values()[0, 32:], np.array([10, -5]) * 22 / 15, rtol=1e-6)


@given(
    st.integers(1, 6),
    st.integers(1, 150),
    st.sampled_from([4, 8]),
    st.sampled_from([32, 64, 128]),
    st.sampled_from(GRIDS),
    st.integers(0, 99),
)
def test_every_weight_is_within_half_a_step_and_rounds_to_itself(outputs, inputs, bits, size, scheme, seed):
    original, grid = weight(outputs, inputs, seed), GroupedWeight(bits, size, scheme)
    found = grid.quantized(original, None)
    simulated = grid(original)
    np.testing.assert_allclose(found.values(), simulated, rtol=1e-6, atol=1e-7)
    step = np.repeat(found.grid.scale, size, 1)[:, :inputs]
    assert (np.abs(found.values() - original.numpy()) <= 0.5001 * step).all()
    np.testing.assert_allclose(grid(simulated), simulated, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from([2, 3, 4, 8]), st.integers(0, 99))
def test_what_is_packed_is_unpacked_bit_for_bit(rows, columns, bits, seed):
    ends = 2 ** (bits - 1)
    integers = np.random.default_rng(seed).integers(-ends, ends, (rows, columns)).astype(np.int8)
    np.testing.assert_array_equal(unpack(pack(integers, bits), np.int8), integers)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
def test_two_integers_of_4_bits_share_a_byte(rows, columns, seed):
    values = np.random.default_rng(seed).integers(0, 16, (rows, columns)).astype(np.uint8)
    stored = nibbles(values, 4)
    assert stored.shape == (rows, (columns + 1) // 2)
    both = np.stack([stored & 15, stored >> 4], -1).reshape(rows, -1)
    np.testing.assert_array_equal(both[:, :columns], values)


@pytest.mark.parametrize("scheme", GRIDS)
@pytest.mark.parametrize("size", [0, 32, 128])
def test_a_packed_file_holds_what_is_computed_and_its_size_is_counted(scheme, size, tmp_path):
    network = nn.Sequential(nn.Linear(100, 33), nn.ReLU(), nn.Linear(33, 5, bias=False)).eval()
    layers = {"0": LayerPolicy(4, weight_group_size=size), "2": LayerPolicy(8, weight_group_size=size)}
    policy = Policy(layers=layers, scheme=scheme)
    made = make_candidate(network, torch.zeros(1, 100), policy, [(torch.zeros(100), 0)])
    path = save_packed(made, tmp_path / "packed.safetensors")
    assert digest(load_packed(path)) == recorded_digest(path)
    np.testing.assert_array_equal(load_packed(path)["0.weight"], weights_of(made)["0.weight"])
    assert counted_bytes(made) == packed_bytes(path)


def test_a_group_is_left_out_where_nothing_asks_for_one():
    """Old policies keep their JSON and their digest."""
    assert Policy(layers={"fc": LayerPolicy(4, 8, weight_group_size=64)}) == Policy(layers={"fc": LayerPolicy(4, 8)})
    assert LayerPolicy(3, weight_group_size=64) == LayerPolicy(3)
    assert LayerPolicy(4, codebook="k_means", weight_group_size=64) == LayerPolicy(4, codebook="k_means")
    plain = Policy(layers={"fc": LayerPolicy(4)}, scheme=Scheme(group_grids="affine"))
    assert plain.to_json() == '{"layers":{"fc":{"weight_bits":4}},"schema":1}'
    assert plain.digest == "49e8166393cae57f"
    sized = Policy(layers={"fc": LayerPolicy(4, weight_group_size=64)}, scheme=Scheme(group_grids="affine"))
    assert Policy.from_json(sized.to_json()) == sized != plain
