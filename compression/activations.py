"""How much memory a model's activations take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.hooks import removed_after


@torch.no_grad()
def bytes_read(model: nn.Module, sample: Batch) -> int:
    """Bytes of the inputs of all modules without parts, about what training keeps of a batch [n, ...]."""
    sizes: list[int] = []

    def note(_module: nn.Module, read: tuple[Any, ...]) -> None:
        sizes.extend(each.nbytes for each in read[:1] if isinstance(each, Tensor))

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if not [*module.children()]]
    with removed_after(hooks):
        model(sample)
    return sum(sizes)
