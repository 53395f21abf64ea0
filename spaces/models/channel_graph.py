"""Which channels of which modules must be removed together, and their removal; every group's channels are numbered as in
its root.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch_pruning import ops
from torch_pruning.dependency import Group

from ...core.batch import Batch
from ...core.errors import CompressionError
from ...core.interrupts import raise_if_interrupted
from .attention.find_heads import find_heads
from .attention.heads import Role
from .attributes import restored
from .dependency_graph import traced
from .failures import first_line
from .recurrent import RecurrentLayer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ChannelGraph:
    """The coupled channels of a model, and their removal in place.

    Args:
        model: put into eval mode; changed by `remove` alone.
        example_input: shape [1, ...]; traces the dependencies.

    Attributes:
        groups: name of the root layer -> Torch-Pruning's group of all its channels, in module order.
        heads: name -> attention whose heads can be removed.
        whole_attentions: name -> why its heads cannot be removed.
        names: module -> its path.
        lost_track: layer -> root of its group, of those that are in none of `groups`: Torch-Pruning does not know which channels of a
            member are which of the root's, as after some `expand`.

    Raises:
        CompressionError: Torch-Pruning cannot trace the model.
    """

    def __init__(self, model: nn.Module, example_input: Batch) -> None:
        self.model = model.eval()
        self.names = {module: name for name, module in model.named_modules()}
        try:
            self.heads, self.whole_attentions = find_heads(self.model, example_input)
            self._graph, found = traced(self.model, example_input, [*self.heads.values()])
        except Exception as error:  # it fails with whatever its tracing meets on an architecture it does not know
            raise_if_interrupted(error)
            raise CompressionError(f"Torch-Pruning failed: {first_line(error)}") from error
        order = {name: index for index, name in enumerate(self.names.values())}
        roots = {self.names[group[0].dep.target.module]: group for group in found}
        self.groups: dict[str, Group] = dict(sorted(roots.items(), key=lambda item: order[item[0]]))
        self.lost_track = {
            maker: name for name in roots if self._loses_track(name) for maker in self._makers_names(name)
        }
        for name in {*self.lost_track.values()}:
            del self.groups[name]

    def root_of(self, name: str) -> str:
        """The group that a layer of this name makes channels of, under its root's name; an attention's is its own.

        Raises:
            CompressionError: there is none.
        """
        if name in self.groups or name in self.heads:
            return name
        for own, heads in self.heads.items():
            if name in heads.made or own.startswith(f"{name}."):  # which an attention of fewer blocks is called
                return own
        for root in self.groups:
            if any(self.names[maker] == name for maker in self.makers(root) if maker in self.names):
                return root
        raise CompressionError(f"no channel group {name!r} in the model")

    def makers(self, name: str) -> Iterator[nn.Module]:
        """The modules of a group that make its channels, the root first."""
        for dep, _ in self.groups[name]:
            if self._graph.is_out_channel_pruning_fn(dep.handler):
                yield dep.target.module

    def _makers_names(self, name: str) -> list[str]:
        return [self.names[maker] for maker in self.makers(name) if maker in self.names]

    def _loses_track(self, name: str) -> bool:
        """Whether a module or a parameter of a group has channels that are no known ones of the root."""
        return any(
            None in roots
            for dep, _, roots in self._items(name)
            if dep.target.type == ops.OPTYPE.PARAMETER or dep.target.module in self.names
        )

    def readers(self, name: str) -> Iterator[tuple[nn.Module, Sequence[int], Sequence[int]]]:
        """(module that reads the group's channels, its own numbers of them, the root's numbers of the same)."""
        for dep, own, roots in self._items(name):
            if not self._graph.is_out_channel_pruning_fn(dep.handler):
                yield dep.target.module, own, roots

    def roles(self, name: str) -> Iterator[Role]:
        """What every module and parameter with a path does with the group's channels; views and additions are left out."""
        if name in self.heads:
            yield from self.heads[name].roles()
            return
        for dep, own, roots in self._items(name):
            target, makes = dep.target, self._graph.is_out_channel_pruning_fn(dep.handler)
            module, dim = target.module, None
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
        """Into how many equal parts the channels are divided so that each part loses as many, at the same places: every group of a
        grouped convolution or a group norm is some whole parts."""
        if name not in self.groups:
            return 1
        channels = out_channels(self.model.get_submodule(name))
        size = channels
        for dep, own, roots in self._items(name):
            if found := _blocks(dep.target.module, self._graph.is_out_channel_pruning_fn(dep.handler)):
                _, block = found
                begins = (root for number, root in zip(own, roots, strict=True) if number % block == 0)
                size = math.gcd(size, block, *begins)
        return channels // size

    def normalises_parts(self, name: str) -> bool:
        """Whether a group norm computes means over parts of the channels."""
        modules = (dep.target.module for dep, _ in self.groups.get(name, ()))
        return any(isinstance(module, nn.GroupNorm) and module.num_groups > 1 for module in modules)

    def divided(self, name: str) -> str | None:
        """A grouped convolution or group norm that divides more than this group's channels, as of what is concatenated: its groups
        would lose different numbers."""
        for dep, own, _ in self._items(name) if name in self.groups else ():
            found = _blocks(dep.target.module, self._graph.is_out_channel_pruning_fn(dep.handler))
            if found and len(set(own)) < found[0]:
                return self.names[dep.target.module]
        return None

    def least(self, name: str, scores: Tensor, kept: int) -> list[int]:
        """Channels of a group to remove so that `kept` are left: those of smallest score, but of each layer that makes some of them, as
        one branch of a concatenation, the best one stays: no layer is left without channels.

        Args:
            scores: shape [channels].
        """
        made = [set(roots) for dep, _, roots in self._items(name) if self._graph.is_out_channel_pruning_fn(dep.handler)]
        best = [max(part, key=lambda channel: float(scores[channel])) for part in made if len(part) < len(scores)]
        return channels_lost(
            scores.index_fill(0, torch.tensor(best, dtype=torch.long), torch.inf), kept, self.partitions(name)
        )

    def any_channels(self, name: str, kept: int) -> list[int]:
        """Channels, or heads, of a group to remove so that `kept` are left: the first ones, of every partition as many."""
        if name in self.heads:
            return list(range(self.heads[name].num_heads - kept))
        channels = out_channels(self.model.get_submodule(name))
        return self.least(name, torch.zeros(channels), kept)

    def remove(self, channels: Mapping[str, Iterable[int]]) -> None:
        """Remove channels, numbered as in their root, and heads; the graph is of no use afterwards (`without` keeps it).

        Raises:
            CompressionError: a module cannot lose them.
        """
        self._cut(channels)
        self.model.train()  # which has modules drop what they kept of calls in evaluation mode, in shapes of before
        self.model.eval()

    def _cut(self, channels: Mapping[str, Iterable[int]]) -> None:
        losses = self._losses({name: set(gone) for name, gone in channels.items() if name not in self.heads})
        try:
            for dep, own in losses:
                self._remove(dep, sorted(own))
            for name in self.heads.keys() & channels.keys():
                self.heads[name].remove(self.model, sorted(channels[name]))
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
        with restored(changed):
            self.remove(channels)
            yield self.model

    @contextmanager
    def cut(self, name: str, channels: Iterable[int]) -> Iterator[None]:
        """As `without`, of one group and to be looked at instead of run: at the cost of the group, whatever the size of the model."""
        with restored(self.members(name)):
            self._cut({name: channels})
            yield

    def members(self, name: str) -> set[nn.Module]:
        """The modules and operations that change where channels or heads of a group are removed."""
        if name in self.heads:
            return {self.model.get_submodule(path) for path in self.heads[name].paths()}
        targets = (dep.target for dep, _ in self.groups[name])
        members = (
            self._owner_of(target.module) if target.type == ops.OPTYPE.PARAMETER else target.module
            for target in targets
        )
        return {member for member in members if isinstance(member, nn.Module)}

    def _owner_of(self, parameter: nn.Parameter) -> nn.Module:
        return self.model.get_submodule(self._graph._param_to_name[parameter].rpartition(".")[0])

    def _remove(self, dep: Any, channels: list[int]) -> None:
        if dep.target.type != ops.OPTYPE.PARAMETER:
            dep(channels)
            return
        owner, _, name = self._graph._param_to_name[dep.target.module].rpartition(".")
        setattr(self.model.get_submodule(owner), name, dep(channels))


def _blocks(module: Any, makes: bool) -> tuple[int, int] | None:
    """How many channels a module makes or reads in groups, and how many are a group; None where it has no groups.

    A depthwise convolution has as many groups as channels, and loses as many of both.
    """
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        return module.num_channels, module.num_channels // module.num_groups
    if isinstance(module, CONVOLUTIONS) and 1 < module.groups != module.out_channels:
        channels = module.out_channels if makes else module.in_channels
        return channels, channels // module.groups
    return None


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
