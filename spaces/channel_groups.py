"""Channel groups: layers whose channels must be removed together (DepGraph, Fang et al. 2023, arXiv:2301.12900).

A group is named after its root layer. A group that cannot be pruned safely is found here, by really pruning a copy,
and not in the middle of a search.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops

from ..errors import CompressionError
from .layers import LAYER_KINDS

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANNEL_MULTIPLE = 8
"""Kept channels are rounded to a multiple of this: vector registers and int8 kernels work in blocks of channels."""


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that lose channels together.

    Attributes:
        name: root layer, dotted module path.
        channels: channels of the uncompressed model.
        layers: members that lose output channels, the root first.
        multiple: kept channels are rounded to it; a grouped convolution loses as many channels in each of its groups.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    multiple: int = CHANNEL_MULTIPLE

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
        the safe groups in module order, and {root layer: reason} for those left out.
    """
    outputs = _output_layers(model, example_input)
    groups = _all_groups(model, example_input)
    fixed = {group.name: reason for group in groups if (reason := _why_fixed(group, outputs))}
    unsafe = _find_unsafe(model, example_input, [group for group in groups if group.name not in fixed])
    reasons = {**fixed, **unsafe}
    return [group for group in groups if group.name not in reasons], reasons


def _why_fixed(group: ChannelGroup, outputs: set[str]) -> str | None:
    """Why no channel of this group can go, whatever the model does with them."""
    if outputs.intersection(group.layers):
        return "its channels are the model's output"
    if group.channels <= group.multiple:
        return f"its {group.channels} channels are too few to lose any: a multiple of {group.multiple} is kept"
    return None


def _find_unsafe(model: nn.Module, example_input: Tensor, groups: list[ChannelGroup]) -> dict[str, str]:
    """{group: reason} of those that break the model, by bisection: one trial prune where all are safe."""
    reason = _why_unsafe(model, example_input, groups) if groups else None
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    middle = len(groups) // 2
    return {
        **_find_unsafe(model, example_input, groups[:middle]),
        **_find_unsafe(model, example_input, groups[middle:]),
    }


def remove_channels(model: nn.Module, example_input: Tensor, kept: Mapping[str, int]) -> None:
    """Prune `model` in place to `kept` channels per group, dropping those of smallest group L2 magnitude.

    Args:
        model: changed in place.
        example_input: shape [1, ...]; traces the dependencies.
        kept: group name -> channels to keep; groups not named stay whole.

    Raises:
        CompressionError: Torch-Pruning cannot prune the model, or left another number of channels than asked for.
    """
    if not kept:
        return
    model.eval()
    # The margin keeps int(channels * (1 - ratio)) in Torch-Pruning from rounding one channel down.
    modules = {name: model.get_submodule(name) for name in kept}
    ratios = {modules[name]: 1 - (kept[name] + 1e-6) / _out_channels(modules[name]) for name in kept}
    try:
        _pruner(model, example_input, ratios).step()
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        # Torch-Pruning fails with whatever its tracing meets on an architecture it does not know.
        raise CompressionError(f"Torch-Pruning failed: {_first_line(error)}") from error
    for name, channels in kept.items():
        if _out_channels(modules[name]) != channels:
            raise CompressionError(f"{name}: {_out_channels(modules[name])} channels left instead of {channels}")


def _pruner(model: nn.Module, example_input: Tensor, ratios: Mapping[nn.Module, float]) -> tp.pruner.BasePruner:
    return tp.pruner.BasePruner(
        model,
        (example_input,),  # type: ignore[arg-type]  # a bare tensor would be unpacked along its batch
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict={**ratios},
        # Fresh dicts: the library's defaults are shared between all pruners and would keep every model alive.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    )


def _all_groups(model: nn.Module, example_input: Tensor) -> list[ChannelGroup]:
    model = copy.deepcopy(model).eval()
    names = {module: name for name, module in model.named_modules()}
    graph = _pruner(model, example_input, {}).DG
    groups = []
    for group in graph.get_all_groups(root_module_types=[ops.TORCH_CONV, ops.TORCH_LINEAR]):
        members = [
            names[dep.target.module]
            for dep, _ in group
            if graph.is_out_channel_pruning_fn(dep.handler) and type(dep.target.module) in LAYER_KINDS
        ]
        root = group[0].dep.target.module
        if members and _out_channels(root) > 1:
            layers = tuple(dict.fromkeys(members))
            groups.append(ChannelGroup(names[root], _out_channels(root), layers, _multiple(group)))
    order = {name: index for index, name in enumerate(names.values())}
    return sorted(groups, key=lambda group: order[group.name])


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


def _why_unsafe(model: nn.Module, example_input: Tensor, groups: list[ChannelGroup]) -> str | None:
    """Why pruning these groups to half breaks the model, or None where it does not."""
    pruned = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            expected = pruned(example_input).shape
        remove_channels(pruned, example_input, {group.name: group.kept(0.5) for group in groups})
        with torch.no_grad():
            shape = pruned(example_input).shape
    except (CompressionError, RuntimeError, ValueError, IndexError, TypeError) as error:
        # Any of these means the pruned copy does not run: the reason is told, the group left out.
        return _first_line(error)
    return None if shape == expected else f"changes the output shape from {list(expected)} to {list(shape)}"


def _multiple(group: tp.dependency.Group) -> int:
    """What the kept channels of `group` must be a multiple of, for all that makes, normalises or reads them in groups."""
    multiple = CHANNEL_MULTIPLE
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.GroupNorm):
            multiple = math.lcm(multiple, module.num_groups)
        # A depthwise convolution has as many groups as channels, and loses both alike.
        elif isinstance(module, CONVOLUTIONS) and module.groups != module.out_channels:
            multiple = math.lcm(multiple, module.groups)
    return multiple


def _out_channels(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels  # type: ignore[return-value]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
