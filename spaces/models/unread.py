"""What reads the weights of layers: nothing that an output depends on, as of a pooler where only the tokens are asked for; or also another
operation than the layer, as `F.conv2d(x, self.conv.weight)`, which would go on with the float weight where the layer computes on integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .attention.influence import trainable
from .attributes import restored

UNREAD = "it runs, but the model's output does not depend on it; exports leave it out"

ELSEWHERE = "forward also reads its weight outside of the layer's own call, where it would stay as it is"


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
    """Those of the layers in `names` whose weight or bias an operation outside of their calls reads, more than its shape or type; the
    model is in eval mode and left as it is."""
    reads = _Reads({name: model.get_submodule(name) for name in names})
    with restored(model.modules()), reads:
        model(example_input)
    return reads.found


class _Reads(TorchDispatchMode):
    """Notes which layers' parameters are read while the layer does not run. Values would not show it of a path that is dead on the example.

    Attributes:
        found: names of such layers.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._layers = layers
        self._names: dict[int, list[str]] = {}
        for name, layer in layers.items():
            for own in layer.parameters(recurse=False):
                self._names.setdefault(id(own), []).append(name)
        self._running: list[nn.Module] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for layer in self._layers.values():
            self._hooks.append(layer.register_forward_pre_hook(lambda own, _: self._running.append(own)))
            self._hooks.append(layer.register_forward_hook(lambda *_: self._running.pop() and None))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            owners = self._names.get(id(leaf), [])
            if not any(self._layers[name] is layer for name in owners for layer in self._running):
                self.found.update(owners)
        return func(*args, **(kwargs or {}))
