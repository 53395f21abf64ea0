"""Which channels of which modules must be removed together, and their removal; every group's channels are numbered as in
its root.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch_pruning import ops
from torch_pruning.dependency import Group

from ...core.errors import CompressionError
from ...core.interrupts import raise_if_interrupted
from .dependency_graph import HeadedAttention, traced
from .recurrent import RecurrentLayer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Role:
    """A part of the model that makes or reads channels of a group.

    Attributes:
        path: of a module, or of a parameter.
        makes: whether it loses them from what it makes, else from what it reads.
        own, roots: its own numbers of the channels, and the root's numbers of the same.
        dim: that a parameter's channels are along; None for a module.
    """

    path: str
    makes: bool
    own: tuple[int, ...]
    roots: tuple[int, ...]
    dim: int | None = None


class ChannelGraph:
    """The coupled channels of a model, and their removal in place.

    Args:
        model: put into eval mode; changed by `remove` alone.
        example_input: shape [1, ...]; traces the dependencies.

    Attributes:
        groups: name of the root layer -> Torch-Pruning's group of all its channels, in module order.
        heads: path -> attention whose heads can be taken out.
        names: module -> its path.

    Raises:
        CompressionError: Torch-Pruning cannot trace the model.
    """

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        self.model = model.eval()
        self.names = {module: name for name, module in model.named_modules()}
        self.heads = {name: module for name, module in model.named_modules() if isinstance(module, HeadedAttention)}
        try:
            self._graph, found = traced(self.model, example_input, self.heads)
        except Exception as error:  # it fails with whatever its tracing meets on an architecture it does not know
            raise_if_interrupted(error)
            raise CompressionError(f"Torch-Pruning failed: {first_line(error)}") from error
        order = {name: index for index, name in enumerate(self.names.values())}
        roots = {self.names[group[0].dep.target.module]: group for group in found}
        self.groups: dict[str, Group] = dict(sorted(roots.items(), key=lambda item: order[item[0]]))

    def root_of(self, name: str) -> str:
        """The group that a layer of this name makes channels of, under its root's name; an attention's is its own.

        Raises:
            CompressionError: there is none.
        """
        if name in self.groups or name in self.heads:
            return name
        for root in self.groups:
            if any(self.names[maker] == name for maker in self.makers(root) if maker in self.names):
                return root
        raise CompressionError(f"no channel group {name!r} in the model")

    def makers(self, name: str) -> Iterator[nn.Module]:
        """The modules of a group that make its channels, the root first; an attention stands for its `out_proj`."""
        for dep, _ in self.groups[name]:
            if self._graph.is_out_channel_pruning_fn(dep.handler):
                module = dep.target.module
                yield module.out_proj if isinstance(module, HeadedAttention) else module

    def readers(self, name: str) -> Iterator[tuple[nn.Module, Sequence[int], Sequence[int]]]:
        """(module that reads the group's channels, its own numbers of them, the root's numbers of the same)."""
        for dep, own, roots in self._items(name):
            if not self._graph.is_out_channel_pruning_fn(dep.handler):
                module = dep.target.module
                yield module.in_proj if isinstance(module, HeadedAttention) else module, own, roots

    def roles(self, name: str) -> Iterator[Role]:
        """What every module and parameter with a path does with the group's channels; views and additions are left out."""
        for dep, own, roots in self._items(name):
            target, makes = dep.target, self._graph.is_out_channel_pruning_fn(dep.handler)
            module, dim = target.module, None
            if isinstance(module, HeadedAttention):
                module = module.out_proj if makes else module.in_proj
            if target.type == ops.OPTYPE.PARAMETER:
                path, dim = self._graph._param_to_name[module], target.pruning_dim
            elif (path := self.names.get(module)) is None:  # an operation without a module
                continue
            yield Role(path, makes, tuple(own), tuple(roots), dim)

    def is_shuffled(self, name: str) -> bool:
        """Whether a view takes the group's channels apart, after which their numbers are others."""
        return any(dep.target in self._graph.shuffles for dep, _ in self.groups[name])

    def parametrized(self, name: str) -> str | None:
        """A module of the group whose weight `torch.nn.utils.parametrize` computes from others in every pass."""
        modules = (dep.target.module for dep, _ in self.groups[name])
        return next((self.names[m] for m in modules if isinstance(m, nn.Module) and is_parametrized(m)), None)

    def partitions(self, name: str) -> int:
        """Into how many equal parts the channels are divided so that each part loses as many, at the same places.

        Every group of a grouped convolution or a group norm is then some whole parts, also where it reads or makes a part of what is
        concatenated.
        """
        channels = out_channels(self.model.get_submodule(name))
        size = channels
        for dep, own, roots in self._items(name):
            if block := _block(dep.target.module, self._graph.is_out_channel_pruning_fn(dep.handler)):
                begins = (root for number, root in zip(own, roots, strict=True) if number % block == 0)
                size = math.gcd(size, block, *begins)
        return channels // size

    def any_channels(self, name: str, kept: int) -> list[int]:
        """Channels, or heads, of a group to remove so that `kept` are left: the first ones, of every partition as many."""
        if name in self.heads:
            return list(range(self.heads[name].num_heads - kept))
        channels = out_channels(self.model.get_submodule(name))
        return channels_lost(torch.zeros(channels), kept, self.partitions(name))

    def remove(self, channels: Mapping[str, Iterable[int]]) -> None:
        """Remove channels, numbered as in their root, and heads; the graph is of no use afterwards (`without` keeps it).

        Raises:
            CompressionError: a module cannot lose them.
        """
        losses = self._losses({name: set(gone) for name, gone in channels.items() if name not in self.heads})
        try:
            for dep, own in losses:
                self._remove(dep, sorted(own))
            for name, attention in self.heads.items():
                if name in channels:
                    attention.keep_heads(sorted(set(range(attention.num_heads)) - set(channels[name])))
        except Exception as error:  # as in tracing
            raise_if_interrupted(error)
            raise CompressionError(f"Torch-Pruning failed: {first_line(error)}") from error

    def _losses(self, channels: Mapping[str, set[int]]) -> Iterable[tuple[Any, set[int]]]:
        """(dependency, its own numbers of the channels it loses) of everything in these groups."""
        losses: dict[tuple[Any, Any], tuple[Any, set[int]]] = {}
        for name, gone in channels.items():
            for dep, numbers, roots in self._items(name):
                own = {number for number, root in zip(numbers, roots, strict=True) if root in gone}
                losses.setdefault((dep.target, dep.handler), (dep, set()))[1].update(own)
        return losses.values()

    def _items(self, name: str) -> Iterator[tuple[Any, Sequence[int], Sequence[int]]]:
        """(dependency, its own numbers of the group's channels, the root's numbers of the same)."""
        for item in self.groups[name]:
            yield item.dep, item.idxs or (), item.root_idxs or ()

    @contextmanager
    def without(self, channels: Mapping[str, Iterable[int]]) -> Iterator[nn.Module]:
        """The model without these channels and heads, as `remove` leaves it; whole again afterwards, at the cost of no copy.

        Raises:
            CompressionError: a module cannot lose them.
        """
        changed = {*self.model.modules(), *(op for op in self._graph.module2node if isinstance(op, nn.Module))}
        before = [_Attributes(module) for module in changed]
        try:
            self.remove(channels)
            yield self.model
        finally:
            for attributes in before:
                attributes.restore()

    def _remove(self, dep: Any, channels: list[int]) -> None:
        if dep.target.type != ops.OPTYPE.PARAMETER:
            dep(channels)
            return
        owner, _, name = self._graph._param_to_name[dep.target.module].rpartition(".")
        setattr(self.model.get_submodule(owner), name, dep(channels))


def _block(module: Any, makes: bool) -> int | None:
    """How many channels that a module makes or reads are a group of it, of which each must lose as many; None where it has none."""
    if isinstance(module, nn.GroupNorm):
        return module.num_channels // module.num_groups
    # A depthwise convolution has as many groups as channels, and loses as many of both.
    if isinstance(module, CONVOLUTIONS) and 1 < module.groups != module.out_channels:
        return (module.out_channels if makes else module.in_channels) // module.groups
    return None


class _Attributes:
    """What a module's attributes are, to be given back to it; tensors are not copied, since pruning makes new ones."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = {
            name: value.copy() if type(value) is list else value
            for name, value in vars(module).items()  # Torch-Pruning counts down the lists of its own modules in place
        }
        self._held = {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")}
        own = [*module._parameters.values(), *module._buffers.values()]
        self._data = [(tensor, tensor.data) for tensor in own if tensor is not None]

    def restore(self) -> None:
        vars(self._module).clear()
        vars(self._module).update(self._values)
        for name, held in self._held.items():
            vars(self._module)[name].clear()
            vars(self._module)[name].update(held)
        for tensor, data in self._data:
            tensor.data = data  # `keep_heads` may cut the tensors that are there, instead of making new ones


def channels_lost(scores: Tensor, kept: int, partitions: int = 1) -> list[int]:
    """Numbers of the channels of smallest score; of several partitions each loses the same, by their mean score.

    Args:
        scores: shape [channels].
        kept: how many are left, a multiple of `partitions`.
    """
    parts = scores.reshape(partitions, -1)
    size = parts.shape[1]
    order = parts.mean(0).argsort(stable=True)[: size - kept // partitions].tolist()
    return sorted(part * size + channel for part in range(partitions) for channel in order)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def out_channels(module: nn.Module) -> int:
    """Channels a convolution or linear layer makes; of a recurrent layer, its units.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, _ConvNd):
        return module.out_channels
    if isinstance(module, RecurrentLayer):
        return module.hidden_size
    raise TypeError(f"a {type(module).__name__} makes no channels")
