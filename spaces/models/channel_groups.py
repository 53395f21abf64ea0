"""Channel groups: layers whose channels must be removed together, and the heads of an attention.

A group is named after its root layer, or after the attention. A group that cannot be pruned safely is found here, by
really pruning a copy, and not in the middle of a search.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...core.batch import Batch, shapes_of, sizes, tensors_of
from ...core.errors import CompressionError
from ...core.hooks import removed_after
from ...core.interrupts import raise_if_interrupted
from .channel_graph import ChannelGraph, out_channels
from .failures import ForwardPath, first_line, place_of
from .layers import LAYER_KINDS
from .recurrent import RECURRENT_KINDS

MAKERS = {**LAYER_KINDS, **RECURRENT_KINDS}
"""Kinds of modules that make channels which can be removed."""

FINEST_MULTIPLE = 4
"""The smallest number that kept channels can be rounded to a multiple of: vector registers and int8 kernels work in blocks of
channels, and fewer than this are not worth a layer."""

SHUFFLED = (
    "a view with more dimensions takes its channels apart, as a channel shuffle does; if it makes the queries, keys and values"
    " of an attention, nn.MultiheadAttention in its place can lose heads"
)
DIVIDED = "{module} divides them together with channels of others, as of what is concatenated, into groups that would lose different numbers"
STUCK = (
    "with half of them forward fails in {place}, which has their number written down (then read it from the tensor's shape)"
    " or passes them on in a way that cannot be followed"
)
HOW_TO_UNPARAMETRIZE = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') makes it a plain one"
LOST_TRACK = (
    "which of its channels a layer or parameter after it reads cannot be followed, as through an expand of some of them"
)
UNTRACED = "its channels cannot be followed: forward does not call it, or lets no gradient through it (no_grad, detach)"


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that lose channels together, or an attention that loses heads.

    Attributes:
        name: root layer, dotted module path; of heads, the attention's path.
        channels: channels (output features, heads) of the uncompressed model.
        layers: members that lose output channels, the root first.
        parts: in how many equal parts they are taken apart, as by a grouped convolution, which loses as many in each.
        unit: what is counted.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    parts: int = 1
    unit: Literal["channel", "head"] = "channel"

    def kept(self, fraction: float, multiple: int) -> int:
        """Channels left when `fraction` in (0, 1] of them is kept: all, or rounded to a multiple, at least one of it.

        Args:
            multiple: what a policy rounds to; see `rounded_to`.
        """
        if fraction >= 1:
            return self.channels
        multiple = min(self.rounded_to(multiple), self.channels)
        return min(self.channels, max(multiple, round(self.channels * fraction / multiple) * multiple))

    def rounded_to(self, multiple: int) -> int:
        """What kept channels are rounded to where a policy says `multiple`: heads to 1, and of several parts as much of it as
        leaves them anything to lose."""
        if self.unit == "head":
            return 1
        if self.parts == 1:
            return multiple
        multiples = [math.lcm(block, self.parts) for block in (multiple, 4, 2, 1) if block <= multiple]
        return next((each for each in multiples if each < self.channels), multiples[0])

    def can_lose(self, multiple: int) -> bool:
        """Whether a policy that rounds to `multiple` can take any channels."""
        return self.channels > self.rounded_to(multiple)

    def why_whole(self, multiple: int) -> str:
        """Why it can lose none where a policy rounds to `multiple`."""
        few = f"its {self.channels} {self.unit}s are too few to lose any"
        return f"{few}: a multiple of {self.rounded_to(multiple)} is kept"


def find_channel_groups(model: nn.Module, example_input: Batch) -> tuple[list[ChannelGroup], dict[str, str]]:
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
    reasons = {**graph.whole_attentions, **dict.fromkeys(_untraced(groups, graph), UNTRACED)}
    reasons |= dict.fromkeys(graph.lost_track, LOST_TRACK)
    reasons |= {group.name: reason for group in groups if (reason := _why_fixed(group, outputs, graph))}
    safe = [group for group in groups if group.name not in reasons]
    halves = _Halves(graph, example_input)
    while unsafe := _find_unsafe(halves, safe, halves.why_unsafe(safe)):  # until what is left is safe together
        reasons |= unsafe
        safe = [group for group in safe if group.name not in unsafe]
    return safe, reasons


def _why_fixed(group: ChannelGroup, outputs: set[str], graph: ChannelGraph) -> str | None:
    """Why no channel of this group can go, whatever the model does with them."""
    if outputs.intersection(group.layers):
        return "its channels are the model's output"
    if group.unit == "channel" and graph.is_shuffled(group.name):
        return SHUFFLED
    if group.unit == "channel" and (name := graph.parametrized(group.name)):
        return f"the weight of {name} is computed from other parameters in every pass; {HOW_TO_UNPARAMETRIZE}"
    if module := graph.divided(group.name):
        return DIVIDED.format(module=module)
    if not group.can_lose(FINEST_MULTIPLE):
        return group.why_whole(FINEST_MULTIPLE)
    return None


class _Halves:
    """Halves the channels of groups, to see whether the model still runs.

    Args:
        graph: of a copy of the model, which is as it was after each look.
        example_input: shape [1, ...].
    """

    @torch.no_grad()
    def __init__(self, graph: ChannelGraph, example_input: Batch) -> None:
        self.graph, self.example_input = graph, example_input
        self.expected = ForwardPath.of(graph.model, example_input)

    @torch.no_grad()
    def why_unsafe(self, groups: list[ChannelGroup]) -> str | None:
        """Why pruning these groups to half breaks the model, or None where it does not."""
        lost = {group.name: self.graph.any_channels(group.name, group.kept(0.5, FINEST_MULTIPLE)) for group in groups}
        try:
            with self.graph.without(lost) as pruned:
                found = ForwardPath.of(pruned, self.example_input)
                left = self.expected.why_left(found, pruned, self.example_input)
        except CompressionError as error:
            return f"none of them can be removed: {first_line(error)}"
        except Exception as error:  # the model's own code may raise anything
            raise_if_interrupted(error)
            return STUCK.format(place=place_of(error))
        if shapes_of(found.outputs) != shapes_of(self.expected.outputs):
            return f"changes the output shape from {sizes(self.expected.outputs)} to {sizes(found.outputs)}"
        return left and f"with half of them {left}"


def _find_unsafe(halves: _Halves, groups: list[ChannelGroup], reason: str | None) -> dict[str, str]:
    """{group: reason} of those that break the model, by bisection, where all together break it for this `reason`."""
    if reason is None or not groups:  # of no groups it is not a fault of theirs: the model does not do the same twice
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    # Most of what breaks couples many layers: with those separated first, the others are tried once.
    ordered = sorted(groups, key=lambda group: len(group.layers), reverse=True)
    coupled = sum(len(group.layers) > 1 for group in groups)
    middle = coupled if 0 < coupled < len(groups) else len(groups) // 2
    first, second = ordered[:middle], ordered[middle:]
    unsafe: dict[str, str] = {}
    for half in (first, second):
        unsafe |= _find_unsafe(halves, half, halves.why_unsafe(half))
    # Two halves that are safe alone and not together: one of them has to stay whole.
    return unsafe or {group.name: f"not together with {second[0].name}: {reason}" for group in first}


def _all_groups(graph: ChannelGraph) -> list[ChannelGroup]:
    groups = []
    for name in graph.groups:
        makers = [graph.names[maker] for maker in graph.makers(name) if type(maker) in MAKERS]
        channels = out_channels(graph.model.get_submodule(name))
        if makers and channels > 1:
            layers = tuple(dict.fromkeys(makers))
            groups.append(ChannelGroup(name, channels, layers, graph.partitions(name)))
    order = {name: index for index, name in enumerate(graph.names.values())}
    return sorted([*groups, *_head_groups(graph)], key=lambda group: order[group.name])


def _head_groups(graph: ChannelGraph) -> Iterator[ChannelGroup]:
    paths = [path for module, path in graph.names.items() if type(module) in LAYER_KINDS]
    for name, heads in graph.heads.items():
        layers = tuple(path for path in paths if path in heads.made)
        yield ChannelGroup(name, heads.num_heads, layers, unit="head")


def _untraced(groups: list[ChannelGroup], graph: ChannelGraph) -> list[str]:
    """Layers of several channels that are in no group."""
    followed = {layer for group in groups for layer in group.layers}
    return [
        name
        for module, name in graph.names.items()
        if type(module) in LAYER_KINDS and out_channels(module) > 1
        and name not in followed
    ]  # fmt: skip


@torch.no_grad()
def _output_layers(model: nn.Module, example_input: Batch) -> set[str]:
    """Layers whose output is the model's output, or a view of it."""
    produced: dict[str, Tensor] = {}  # kept: the address of a freed tensor is soon that of another
    hooks = [
        module.register_forward_hook(lambda _module, _input, output, name=name: produced.update({name: output}))
        for name, module in model.named_modules()
        if type(module) in LAYER_KINDS
    ]
    with removed_after(hooks):
        outputs = tensors_of(model.eval()(example_input))
    places = {output.data_ptr() for output in outputs}
    return {name for name, tensor in produced.items() if tensor.data_ptr() in places}
