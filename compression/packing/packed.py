"""Weights packed into the fewest bytes: values at their own bit-width, zeros left out where that is smaller.

| format | bits of a matrix [rows, columns] with k values that are not zero, b bits each |
|---|---|
| dense | rows x columns x b |
| bitmap | rows x columns + k x b (a bit for each place says whether it holds a value) |
| csr | (rows + 1) x bits of k + k x (bits of a column number + b) (compressed sparse rows, Saad 2003, section 3.4) |

Numbers are written least significant bit first without padding, one part after the other; a matrix fills whole bytes.
The rows of a weight are its axis 0. A value is zero when all its bits are: -0.0 is kept as a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

Format = Literal["dense", "bitmap", "csr"]
FLOATS = {16: np.dtype(ml_dtypes.bfloat16), 32: np.dtype(np.float32)}
"""The type of floating-point values by their bits."""


@dataclass(frozen=True)
class Packed:
    """A packed array.

    Attributes:
        format: how zeros are stored.
        shape: of the array, at least one axis.
        bits: of one value.
        values: how many are stored.
        payload: the packed bytes themselves.
    """

    format: Format
    shape: tuple[int, ...]
    bits: int
    values: int
    payload: bytes


def smallest_format(rows: int, columns: int, values: int, bits: int) -> tuple[Format, int]:
    """The format that takes the fewest bytes, and how many; the simplest one of several.

    Args:
        values: how many are not zero.
        bits: of one value.
    """
    sizes: dict[Format, int] = {
        "dense": rows * columns * bits,
        "bitmap": rows * columns + values * bits,
        "csr": (rows + 1) * values.bit_length() + values * (_width(columns) + bits),
    }
    best = min(sizes, key=lambda name: -(-sizes[name] // 8))
    return best, -(-sizes[best] // 8)


def pack(array: np.ndarray, bits: int) -> Packed:
    """`array` packed into the smallest format.

    Args:
        array: float32 or bfloat16 where `bits` is 32 or 16 and the type is a float; else integers that fit `bits` bits, signed.

    Raises:
        ValueError: a value needs more bits.
    """
    codes = _codes(array, bits).reshape(len(array), -1)
    held = codes != 0
    count = int(held.sum())
    name, _ = smallest_format(*codes.shape, count, bits)
    if name == "dense" and bits % 8 == 0:  # whole bytes: nothing to shift
        return Packed(name, array.shape, bits, count, codes.astype(f"<u{bits // 8}").tobytes())
    if name == "dense":
        parts = [_bits(codes.ravel(), bits)]
    elif name == "bitmap":
        parts = [held.ravel(), _bits(codes[held], bits)]
    else:
        pointers = np.concatenate([[0], held.sum(axis=1).cumsum()])
        parts = [
            _bits(pointers, count.bit_length()),
            _bits(np.nonzero(held)[1], _width(codes.shape[1])),
            _bits(codes[held], bits),
        ]
    stream = np.concatenate([part.ravel().astype(np.uint8) for part in parts])
    return Packed(name, array.shape, bits, count, np.packbits(stream, bitorder="little").tobytes())


def unpack(packed: Packed, dtype: np.dtype | type) -> np.ndarray:
    """The array that was packed, bit for bit, of the `dtype` it had."""
    rows, columns = packed.shape[0], int(np.prod(packed.shape[1:]))
    if packed.format == "dense" and packed.bits % 8 == 0:
        whole = np.frombuffer(packed.payload, f"<u{packed.bits // 8}").astype(np.uint64)
        return _decoded(whole.reshape(packed.shape), packed.bits, np.dtype(dtype))
    stream = np.unpackbits(np.frombuffer(packed.payload, np.uint8), bitorder="little")
    codes = np.zeros((rows, columns), np.uint64)
    if packed.format == "dense":
        codes = _numbers(stream, rows * columns, packed.bits)
    elif packed.format == "bitmap":
        held = stream[: rows * columns].astype(bool).reshape(rows, columns)
        codes[held] = _numbers(stream[rows * columns :], packed.values, packed.bits)
    else:
        pointer_bits, column_bits = (rows + 1) * packed.values.bit_length(), packed.values * _width(columns)
        pointers = _numbers(stream, rows + 1, packed.values.bit_length()).astype(np.int64)
        places = _numbers(stream[pointer_bits:], packed.values, _width(columns)).astype(np.int64)
        owners = np.repeat(np.arange(rows), np.diff(pointers))
        codes[owners, places] = _numbers(stream[pointer_bits + column_bits :], packed.values, packed.bits)
    return _decoded(codes.reshape(packed.shape), packed.bits, np.dtype(dtype))


def _width(columns: int) -> int:
    """Bits of a column's number."""
    return (columns - 1).bit_length()


def _codes(array: np.ndarray, bits: int) -> np.ndarray:
    """Each value's bits as an unsigned number, shape of the array."""
    if array.dtype.kind not in "iu":
        if array.dtype != FLOATS.get(bits):
            raise ValueError(f"{array.dtype} values are not stored at {bits} bits")
        return array.view(f"u{bits // 8}").astype(np.uint64)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(f"a value beyond [{low}, {high}] does not fit {bits} bits")
    return array.astype(np.int64).astype(np.uint64) & np.uint64(2**bits - 1)


def _decoded(codes: np.ndarray, bits: int, dtype: np.dtype) -> np.ndarray:
    if dtype in FLOATS.values():
        return codes.astype(f"u{bits // 8}").view(dtype)
    signed = codes.astype(np.int64)
    return np.where(signed >= 2 ** (bits - 1), signed - 2**bits, signed).astype(dtype)


def _bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Bits of unsigned numbers, shape [n, width], the least significant first."""
    return (numbers.astype(np.uint64)[:, None] >> np.arange(width, dtype=np.uint64)) & np.uint64(1)


def _numbers(stream: np.ndarray, count: int, width: int) -> np.ndarray:
    """The first `count` numbers of a stream of bits."""
    digits = stream[: count * width].reshape(count, width).astype(np.uint64)
    return (digits << np.arange(width, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
