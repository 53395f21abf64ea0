"""Taps: intermediate tensors of a network, for distillers that compare them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.errors import WorkloadError
from ...core.hooks import removed_after
from ...spaces.models.layers import LAYER_KINDS
from .distil import Tap

LAYERS = tuple(LAYER_KINDS)
SEEN: Mapping[Tap, str] = {"embedding": "convolution or linear layer", "maps": "images of activations"}


def tapped_modules(model: nn.Module, example_input: Batch, tap: Tap | None) -> list[str]:
    """Modules whose input (tap "embedding") or output ("maps") a distiller reads, in the order they run.

    "embedding" is the last layer; "maps" are, for each resolution of activations [batch, channels, h, w] above 1x1, the
    last module that makes one.

    Raises:
        WorkloadError: the model has no such module.
    """
    if tap is None:
        return []
    ran = _outputs_in_order(model, example_input)
    if tap == "embedding":
        found = [name for name, _ in ran if isinstance(model.get_submodule(name), LAYERS)][-1:]
    else:
        last = {tuple(shape[2:]): name for name, shape in ran if len(shape) == 4 and shape[2] * shape[3] > 1}
        found = list(last.values())
    if not found:
        raise WorkloadError(f"the model has no {SEEN[tap]} for the distiller to look at")
    return found


@contextmanager
def tapping(model: nn.Module, modules: Sequence[str], tap: Tap | None) -> Iterator[list[Tensor]]:
    """Yields a list that contains the inputs or outputs of `modules` after each forward pass."""
    seen: dict[str, Tensor] = {}
    views: list[Tensor] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple, output: Tensor) -> None:
            seen[name] = inputs[0] if tap == "embedding" else output
            views[:] = [seen[module] for module in modules if module in seen]

        return model.get_submodule(name).register_forward_hook(hook)

    hooks = [watch(name) for name in modules]
    with removed_after(hooks):
        yield views


def projections(student: Sequence[Tensor], teacher: Sequence[Tensor], tap: Tap | None) -> nn.ModuleList:
    """Linear maps from the widths of a student's embeddings to the teacher's; the identity where they are the same."""
    if tap != "embedding":
        return nn.ModuleList()
    widths = [(own[0].numel(), taught[0].numel()) for own, taught in zip(student, teacher, strict=True)]
    return nn.ModuleList(nn.Identity() if own == taught else nn.Linear(own, taught) for own, taught in widths)


@torch.no_grad()
def _outputs_in_order(model: nn.Module, example_input: Batch) -> list[tuple[str, torch.Size]]:
    """Modules that return one tensor, with its shape, as they finish."""
    ran: list[tuple[str, torch.Size]] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                ran.append((name, output.shape))

        return model.get_submodule(name).register_forward_hook(hook)

    hooks = [watch(name) for name, _ in model.named_modules() if name and "parametrizations" not in name.split(".")]
    training = model.training
    try:
        model.eval()(example_input)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return ran
