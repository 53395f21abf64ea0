"""How the tables of embeddings are stored: one decision a table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .checks import is_whole, require
from .layer_policy import FULL_PRECISION

EMBEDDING_BITS = (4, 8, FULL_PRECISION)
"""Integers with one scale per row, two of 4 bits in a byte, of which only the rows that are looked up become floats; or float32."""


def decided_embeddings(decided: Any) -> Mapping[str, int]:
    """Embedding -> bits of its table, in the order of names and without those that change nothing.

    Raises:
        PolicyError: bits are none of `EMBEDDING_BITS`.
    """
    require(isinstance(decided, Mapping), f"embeddings must be a JSON object, not {decided!r}")
    for name, bits in decided.items():
        known = is_whole(bits) and bits in EMBEDDING_BITS
        require(known, f"embeddings {name} must be one of {list(EMBEDDING_BITS)}, not {bits!r}")
    return MappingProxyType({name: bits for name, bits in sorted(decided.items()) if bits != FULL_PRECISION})
