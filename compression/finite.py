"""The check that every weight of a compressed model is a finite number."""

from __future__ import annotations

import torch
from torch import nn

from ..core.errors import CompressionError


@torch.no_grad()
def not_finite(model: nn.Module) -> str | None:
    """The first parameter or buffer of `model` that holds NaN or an infinity, None where there is none."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return next((name for name, t in tensors if t.is_floating_point() and not bool(t.isfinite().all())), None)


def require_finite(model: nn.Module) -> None:
    """Require that all weights of a compressed model are finite.

    Raises:
        CompressionError: one is NaN or infinite; it is named.
    """
    if (name := not_finite(model)) is not None:
        raise CompressionError(f"compressing the model left {name} with NaN or infinite numbers")
