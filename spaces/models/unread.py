"""Layers that run and that no output of the model depends on, such as a pooler where only the tokens are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .attention.influence import trainable
from .attributes import restored

UNREAD = "it runs, but the model's output does not depend on it; exports leave it out"


def unread_layers(model: nn.Module, example_input: Any, names: Sequence[str]) -> set[str]:
    """Those of the layers in `names` of which no output depends; the model is in eval mode and left as it is.

    A layer that gradients do not reach may still be read (through `detach`, `no_grad` or rounding): whether it is, another weight shows.
    """
    reached = _reached(model, example_input)
    suspects = [name for name in names if reached.isdisjoint(model.get_submodule(name).parameters(recurse=False))]
    if not suspects:
        return set()
    before = _outputs(model, example_input)
    return {name for name in suspects if _is_unread(model, example_input, model.get_submodule(name), before)}


def _reached(model: nn.Module, example_input: Any) -> set[Tensor]:
    """The parameters that gradients of the outputs reach."""
    with restored(model.modules()), trainable(model), torch.enable_grad():
        waiting = [leaf.grad_fn for leaf in tree_leaves(model(example_input)) if isinstance(leaf, Tensor)]
        seen: set[Any] = {None}
        found: set[Tensor] = set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if isinstance(tensor := getattr(node, "variable", None), Tensor):
                found.add(tensor)
            waiting += [parent for parent, _ in getattr(node, "next_functions", ())]
        return found


@torch.no_grad()
def _is_unread(model: nn.Module, example_input: Any, layer: nn.Module, before: Sequence[Tensor]) -> bool:
    """Whether outputs stay the same where every parameter of a layer is another."""
    with restored([layer]):
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data * 1.5 + 1
        after = _outputs(model, example_input)
    return all(torch.equal(first, second) for first, second in zip(before, after, strict=True))


@torch.no_grad()
def _outputs(model: nn.Module, example_input: Any) -> list[Tensor]:
    return [leaf.clone() for leaf in tree_leaves(model(example_input)) if isinstance(leaf, Tensor)]
