"""Checks that the decisions of a policy share."""

from __future__ import annotations

import math
from typing import TypeGuard

from ...core.errors import PolicyError
from ...core.validation import MAX_SENTENCE, shortened

DECIMALS = 6
"""Fractions and settings are rounded to so many decimals: what differs less is the same policy."""


def rounded(value: float) -> float:
    """`value` as policies hold it."""
    return round(float(value), DECIMALS)


EPOCH_DECIMALS = 9
"""Epochs are rounded to so many decimals, which tell single batches of large data sets apart."""


def epochs_of(value: float) -> float:
    """Epochs as policies hold them: an `int` where they are whole."""
    found = round(value, EPOCH_DECIMALS)
    return int(found) if found == int(found) else found


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_fraction(value: object) -> TypeGuard[float]:
    """Whether `value` lies in [0, 1) and still does once it is rounded."""
    return is_number(value) and 0 <= rounded(value) < 1


def require(condition: bool, problem: str) -> None:
    """Raise PolicyError with `problem` unless `condition` holds."""
    if not condition:
        raise PolicyError(shortened(problem, MAX_SENTENCE))
