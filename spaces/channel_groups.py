"""Channel groups: layers whose channels must be removed together, and the heads of an attention.

A group is named after its root layer, or after the attention. A group that cannot be pruned safely is found here, by
really pruning a copy, and not in the middle of a search.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import CompressionError
from ..interrupts import raise_if_interrupted
from .channel_graph import ChannelGraph, channels_lost, first_line, out_channels
from .layers import LAYER_KINDS

CHANNEL_MULTIPLE = 8
"""Kept channels are rounded to a multiple of this: vector registers and int8 kernels work in blocks of channels."""

UNTRACED = "its channels cannot be followed: forward does not call it, or lets no gradient through it (no_grad, detach)"


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that lose channels together, or an attention that loses heads.

    Attributes:
        name: root layer, dotted module path; of heads, the attention's path.
        channels: channels (output features, heads) of the uncompressed model.
        layers: members that lose output channels, the root first.
        multiple: kept channels are rounded to it; a grouped convolution loses as many channels in each of its groups.
        unit: what is counted.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    multiple: int = CHANNEL_MULTIPLE
    unit: Literal["channel", "head"] = "channel"

    def kept(self, fraction: float) -> int:
        """Channels left when `fraction` in (0, 1] of them is kept: all, or rounded to `multiple`, at least one multiple."""
        if fraction >= 1:
            return self.channels
        multiple = min(self.multiple, self.channels)
        return min(self.channels, max(multiple, round(self.channels * fraction / multiple) * multiple))


def find_channel_groups(model: nn.Module, example_input: Tensor) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Groups of `model` that can be pruned, and why the others cannot.

    Every group is pruned to half on a copy, which must still run and keep its output shape.

    Returns:
        the safe groups in module order, and {root layer: reason} for those left out; where Torch-Pruning cannot trace the
        model there are none, and the reason goes under the model's class.
    """
    outputs = _output_layers(model, example_input)
    try:
        graph = ChannelGraph(copy.deepcopy(model), example_input)
    except CompressionError as error:  # what needs no channels, such as bits, can be searched all the same
        return [], {type(model).__name__: f"no channel can be followed: {error}"}
    groups = _all_groups(graph)
    reasons = dict.fromkeys(_untraced(groups, graph), UNTRACED)
    reasons |= {group.name: reason for group in groups if (reason := _why_fixed(group, outputs, graph))}
    safe = [group for group in groups if group.name not in reasons]
    reason = _why_unsafe(model, example_input, safe, graph) if safe else None
    while unsafe := _find_unsafe(model, example_input, safe, reason):  # until what is left is safe together
        reasons |= unsafe
        safe = [group for group in safe if group.name not in unsafe]
        reason = _why_unsafe(model, example_input, safe) if safe else None
    return safe, reasons


def _why_fixed(group: ChannelGroup, outputs: set[str], graph: ChannelGraph) -> str | None:
    """Why no channel of this group can go, whatever the model does with them."""
    if outputs.intersection(group.layers):
        return "its channels are the model's output"
    if group.unit == "channel" and graph.is_shuffled(group.name):
        return "a view with more dimensions takes its channels apart, as a channel shuffle does"
    if group.channels <= group.multiple:
        few = f"its {group.channels} {group.unit}s are too few to lose any"
        return f"{few}: a multiple of {group.multiple} is kept"
    return None


def _find_unsafe(
    model: nn.Module, example_input: Tensor, groups: list[ChannelGroup], reason: str | None
) -> dict[str, str]:
    """{group: reason} of those that break the model, by bisection, where all together break it for this `reason`."""
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    # Most of what breaks couples many layers: told apart first, the others are tried once.
    ordered = sorted(groups, key=lambda group: len(group.layers), reverse=True)
    coupled = sum(len(group.layers) > 1 for group in groups)
    middle = coupled if 0 < coupled < len(groups) else len(groups) // 2
    first, second = ordered[:middle], ordered[middle:]
    unsafe: dict[str, str] = {}
    for half in (first, second):
        unsafe |= _find_unsafe(model, example_input, half, _why_unsafe(model, example_input, half))
    # Two halves that are safe alone and not together: one of them has to stay whole.
    return unsafe or {group.name: f"not together with {second[0].name}: {reason}" for group in first}


def _why_unsafe(
    model: nn.Module, example_input: Tensor, groups: list[ChannelGroup], graph: ChannelGraph | None = None
) -> str | None:
    """Why pruning these groups to half breaks the model, or None where it does not.

    Args:
        graph: of a copy of the model, which is used up; made where there is none, which takes seconds for a large model.
    """
    try:
        graph = graph or ChannelGraph(copy.deepcopy(model), example_input)
        pruned = graph.model
        with torch.no_grad():
            expected = pruned(example_input).shape
        graph.remove({g.name: channels_lost(torch.zeros(g.channels), g.kept(0.5), _parts(g, graph)) for g in groups})
        with torch.no_grad():
            shape = pruned(example_input).shape
    except (CompressionError, RuntimeError, ValueError, IndexError, TypeError) as error:
        # Any of these means the pruned copy does not run: the reason is told, the group left out.
        raise_if_interrupted(error)
        return first_line(error)
    return None if shape == expected else f"changes the output shape from {list(expected)} to {list(shape)}"


def _parts(group: ChannelGroup, graph: ChannelGraph) -> int:
    return graph.partitions(group.name) if group.unit == "channel" else 1


def _all_groups(graph: ChannelGraph) -> list[ChannelGroup]:
    groups = []
    for name in graph.groups:
        makers = [graph.names[maker] for maker in graph.makers(name) if type(maker) in LAYER_KINDS]
        channels = out_channels(graph.model.get_submodule(name))
        if makers and channels > 1:
            layers = tuple(dict.fromkeys(makers))
            groups.append(ChannelGroup(name, channels, layers, _multiple(channels, graph.partitions(name))))
    for name, attention in graph.heads.items():
        layers = (graph.names[attention.in_proj],)
        groups.append(ChannelGroup(name, attention.num_heads, layers, multiple=1, unit="head"))
    order = {name: index for index, name in enumerate(graph.names.values())}
    return sorted(groups, key=lambda group: order[group.name])


def _untraced(groups: list[ChannelGroup], graph: ChannelGraph) -> list[str]:
    """Layers of several channels that are in no group; what an attention has inside is followed as one with it."""
    followed = {layer for group in groups for layer in group.layers}
    inside = tuple(f"{name}." for name in graph.heads)
    return [
        name
        for module, name in graph.names.items()
        if type(module) in LAYER_KINDS and out_channels(module) > 1
        and name not in followed and not name.startswith(inside)
    ]  # fmt: skip


def _multiple(channels: int, partitions: int) -> int:
    """What kept channels are rounded to: as much of `CHANNEL_MULTIPLE` as leaves several parts anything to lose."""
    if partitions == 1:
        return CHANNEL_MULTIPLE
    multiples = [math.lcm(blocks, partitions) for blocks in (CHANNEL_MULTIPLE, 4, 2, 1)]
    return next((multiple for multiple in multiples if multiple < channels), multiples[0])


@torch.no_grad()
def _output_layers(model: nn.Module, example_input: Tensor) -> set[str]:
    """Layers whose output is the model's output, or a view of it."""
    produced: dict[str, Tensor] = {}  # kept: the address of a freed tensor is soon that of another
    hooks = [
        module.register_forward_hook(lambda _module, _input, output, name=name: produced.update({name: output}))
        for name, module in model.named_modules()
        if type(module) in LAYER_KINDS
    ]
    try:
        output = model.eval()(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, tensor in produced.items() if tensor.data_ptr() == output.data_ptr()}
