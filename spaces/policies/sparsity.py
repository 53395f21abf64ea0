"""What of a layer's weight is set to zero."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Sparsity = float | str
"""Fraction of a layer's weights set to zero; "2:4": two of every four along the input dimension; or "<0.5std": all whose
magnitude is below so many standard deviations of the layer's weights (Han et al. 2015, arXiv:1506.02626)."""

_THRESHOLD = re.compile(r"<(\d+(?:\.\d+)?)std")


def threshold_of(sparsity: Sparsity) -> float | None:
    """Standard deviations below which weights are zero, where `sparsity` is such a threshold."""
    form = _THRESHOLD.fullmatch(sparsity) if isinstance(sparsity, str) else None
    return float(form[1]) if form and float(form[1]) > 0 else None


def zeroed_share(sparsity: Sparsity) -> float:
    """Fraction of weights set to zero: as it says, one half of "2:4", and of a threshold what lies below it in a normal
    distribution around zero, which weights only resemble."""
    threshold = threshold_of(sparsity)
    if threshold is not None:
        return math.erf(threshold / math.sqrt(2))
    return 0.5 if isinstance(sparsity, str) else sparsity


def zeros_in(weight: Tensor, sparsity: Sparsity) -> float:
    """The fraction of a weight that becomes zero."""
    threshold = threshold_of(sparsity)
    if threshold is not None:
        return float((weight.abs() < threshold * weight.std()).float().mean())
    return 0.5 if sparsity == "2:4" else float(sparsity)
