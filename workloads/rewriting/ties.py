"""Layers that share one weight, as one layer that runs more than once: counted, stored, pruned and quantized once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_SHAPING = ("in_features", "out_features", "stride", "padding", "dilation", "groups", "padding_mode")
"""The settings that two layers of one weight may differ in."""


class Biased(nn.Module):
    """A layer that others run too, with a bias of its own; whatever else is asked of it is the layer's."""

    def __init__(self, layer: nn.Module, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_parameter("bias", bias)
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, values: Tensor) -> Tensor:
        made = self.layer(values)
        if self.bias is None:
            return made
        channels_last = isinstance(self.layer, nn.Linear)
        return made + (self.bias if channels_last else self.bias.view(-1, *[1] * (made.ndim - 2)))


def tied_layers(model: nn.Module) -> Iterator[list[str]]:
    """Paths of layers of one kind that share a weight, and of nothing else that has it, in module order."""
    owners: dict[int, list[tuple[str, str]]] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append((path, key))
    for own in owners.values():
        if len(own) > 1 and all(key == "weight" for _, key in own):
            paths = [path for path, _ in own]
            if _are_of_one_kind([model.get_submodule(path) for path in paths]):
                yield paths


def _are_of_one_kind(layers: Sequence[nn.Module]) -> bool:
    """Whether these are layers of one of `KINDS` that differ in nothing but their weights."""
    settings = {(type(layer), *(str(getattr(layer, name, None)) for name in _SHAPING)) for layer in layers}
    return len(settings) == 1 and type(layers[0]) in KINDS


def share(model: nn.Module, paths: list[str]) -> None:
    """Have the layers at `paths`, which have one weight, be one layer that runs for each, in place."""
    layers = [model.get_submodule(path) for path in paths]
    biases = [layer._parameters["bias"] for layer in layers]
    if all(bias is biases[0] for bias in biases):
        for path in paths[1:]:
            model.set_submodule(path, layers[0])
        return
    shared = copy.copy(layers[0])  # whose weight stays the same object
    shared._parameters = {**layers[0]._parameters, "bias": None}
    for path, bias in zip(paths, biases, strict=True):
        model.set_submodule(path, Biased(shared, bias))
