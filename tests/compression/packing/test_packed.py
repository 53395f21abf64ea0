"""Packed weights: sizes by hand, and every bit back."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from slimfront.compression.packing.packed import pack, smallest_format, unpack


@pytest.mark.parametrize(
    ("rows", "columns", "values", "bits", "expected"),
    [
        (8, 8, 64, 4, ("dense", 32)),
        (8, 8, 32, 4, ("bitmap", 24)),  # 64 + 128 bits
        (8, 8, 64, 1, ("dense", 8)),
        (16, 256, 16, 8, ("csr", 43)),  # 17 pointers of 5 bits, 16 columns of 8 and values of 8: 341 bits
        (4, 4, 0, 8, ("csr", 0)),  # nothing to point at
    ],
)
def test_the_smallest_format_by_hand(rows, columns, values, bits, expected):
    assert smallest_format(rows, columns, values, bits) == expected


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4, 5, 6, 8]), st.floats(0, 1),
    st.sampled_from([(3,), (7, 5), (4, 3, 3, 3), (2, 300)]),
)  # fmt: skip
def test_integers_come_back_and_fill_what_was_said(seed, bits, density, shape):
    random = np.random.default_rng(seed)
    array = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, dtype=np.int8)
    array[random.random(shape) > density] = 0
    packed = pack(array, bits)
    back = unpack(packed, np.int8)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    columns = int(np.prod(shape[1:]))
    assert len(packed.payload) == smallest_format(shape[0], columns, int((array != 0).sum()), bits)[1]


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, 32), (ml_dtypes.bfloat16, 16)])
@pytest.mark.parametrize(("density", "name"), [(1.0, "dense"), (0.5, "bitmap"), (0.001, "csr")])
def test_floats_come_back_bit_for_bit(dtype, bits, density, name):
    random = np.random.default_rng(0)
    array = random.standard_normal((40, 50)).astype(dtype)
    array[random.random(array.shape) > density] = 0
    array[0, 0], array[1, 1] = -0.0, np.nan
    packed = pack(array, bits)
    assert packed.format == name
    assert unpack(packed, dtype).tobytes() == array.tobytes()


def test_rows_and_columns_are_those_of_another_implementation():
    array = np.zeros((16, 256), np.int8)
    array[3, 200], array[3, 7], array[15, 0] = 5, -6, 7
    packed, reference = pack(array, 8), csr_matrix(array)
    assert packed.format == "csr"
    stream = np.unpackbits(np.frombuffer(packed.payload, np.uint8), bitorder="little")
    pointers = stream[: 17 * 2].reshape(17, 2) @ [1, 2]
    columns = stream[34 : 34 + 3 * 8].reshape(3, 8) @ (2 ** np.arange(8))
    assert pointers.tolist() == reference.indptr.tolist()
    assert columns.tolist() == reference.indices.tolist()


def test_a_value_that_does_not_fit_is_reported():
    with pytest.raises(ValueError, match=r"beyond \[-8, 7\] does not fit 4 bits"):
        pack(np.array([8], np.int8), 4)
    with pytest.raises(ValueError, match="float32 values are not stored at 8 bits"):
        pack(np.array([1.0], np.float32), 8)
