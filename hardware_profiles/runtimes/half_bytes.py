"""Rows of 4-bit integers, two in a byte, as artifacts hold embeddings' tables."""

from __future__ import annotations

import numpy as np

from ...spaces.policies.candidate import QuantizedWeight

HALF_BYTE = 4
MIDDLE = 8
"""What is added to integers of 4 bits where they share a byte, so that none is negative."""


def needs_half_bytes(table: QuantizedWeight) -> bool:
    """Whether two of a table's integers fit into a byte."""
    return -table.grid.low < MIDDLE and table.grid.high < MIDDLE


def in_half_bytes(integers: np.ndarray) -> np.ndarray:
    """Rows of integers of 4 bits as bytes: the first half in the low bits, the second, filled up with a zero, in the high ones."""
    numbers = np.pad(integers + MIDDLE, ((0, 0), (0, integers.shape[1] % 2)), constant_values=MIDDLE).astype(np.uint8)
    low, high = np.split(numbers, 2, axis=1)
    return low | high << HALF_BYTE
