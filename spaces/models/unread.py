"""What reads the weights of layers: nothing that an output depends on, as of a pooler where only the tokens are asked for; or also another
operation than the layer, as `F.conv2d(x, self.conv.weight)`, which would go on with the float weight where the layer computes on integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .attention.influence import trainable
from .attributes import restored

UNREAD = "it runs, but the model's output does not depend on it; exports leave it out"

ELSEWHERE = "forward also reads its weight outside of the layer's own call, where it would stay as it is"

SAME = 1e-4
"""The largest difference of an output, relative to its largest value, of a model from itself."""


def unread_layers(model: nn.Module, example_input: Any, names: Sequence[str]) -> set[str]:
    """Those of the layers in `names` of which no output depends; the model is in eval mode and left as it is.

    A layer that gradients do not reach may still be read (through `detach`, `no_grad` or rounding): whether it is, another weight shows.
    """
    reached = _reached(model, example_input)
    suspects = [name for name in names if reached.isdisjoint(model.get_submodule(name).parameters(recurse=False))]
    if not suspects:
        return set()
    before = output_tensors(model, example_input)
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
        after = output_tensors(model, example_input)
    return all(torch.equal(first, second) for first, second in zip(before, after, strict=True))


@torch.no_grad()
def output_tensors(model: nn.Module, example_input: Any) -> list[Tensor]:
    """The tensors that a model returns, in whatever structure."""
    return [leaf.clone() for leaf in tree_leaves(model(example_input)) if isinstance(leaf, Tensor)]


@torch.no_grad()
def read_elsewhere(model: nn.Module, example_input: Any, names: Sequence[str]) -> set[str]:
    """Those of the layers in `names` whose weight or bias is also read outside of their calls; the model is in eval mode and left as it is.

    Outside of its calls each layer has other numbers; where outputs change, bisection finds the layers.
    """
    return _found(model, example_input, names, output_tensors(model, example_input)) if names else set()


def _found(model: nn.Module, example_input: Any, names: Sequence[str], before: Sequence[Tensor]) -> set[str]:
    with _hidden([model.get_submodule(name) for name in names]):
        after = output_tensors(model, example_input)
    if all(map(_is_same, before, after)):
        return set()
    if len(names) == 1:
        return set(names)
    middle = len(names) // 2
    return {
        *_found(model, example_input, names[:middle], before),
        *_found(model, example_input, names[middle:], before),
    }


def _is_same(before: Tensor, after: Tensor) -> bool:
    if not before.numel() or not before.is_floating_point():
        return torch.equal(before, after)
    return bool((before - after).abs().max() <= SAME * before.abs().max())


@contextmanager
def _hidden(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Have each layer's parameters be other numbers except while it runs."""
    own = {layer: {parameter: parameter.data for parameter in layer.parameters(recurse=False)} for layer in layers}

    def show(layer: nn.Module, *_: object) -> None:
        for parameter, data in own[layer].items():
            parameter.data = data

    def hide(layer: nn.Module, *_: object) -> None:
        for parameter, data in own[layer].items():
            parameter.data = -2 * data

    hooks = [layer.register_forward_pre_hook(show) for layer in layers]
    hooks += [layer.register_forward_hook(hide) for layer in layers]
    try:
        with restored(layers):
            for layer in layers:
                hide(layer)
            yield
    finally:
        for hook in hooks:
            hook.remove()
