"""Heads of attention: the channels of layers that belong to each, and their removal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

Places = tuple[tuple[int, ...], ...]
"""Channels of each head."""


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


@dataclass(frozen=True)
class Slice:
    """Channels in one weight: `own` numbers along `dim`, and the numbers of the same in their root, or of their heads."""

    weight: Tensor
    dim: int
    own: Tensor
    roots: Tensor


@dataclass(frozen=True)
class HeadWeights:
    """The weights of an attention's heads.

    Attributes:
        num_heads: how many there are.
        slices: rows of queries, keys and values and columns of the output, by their heads.
    """

    num_heads: int
    slices: Sequence[Slice]


@dataclass(frozen=True)
class Heads:
    """The heads of an attention.

    Attributes:
        name: path of the module that holds all of it, or of its first layer where that holds more.
        holder: path of the module that holds all of it.
        num_heads: how many there are.
        made, read: part -> the channels of each head that it makes or reads.
        parameters: path of a parameter outside the parts, such as a position bias -> its dimension of heads, and the indices of each.
        sizes: (path of a module, attribute) -> the number there, which is proportional to the number of heads.
    """

    name: str
    holder: str
    num_heads: int
    made: Mapping[str, Places]
    read: Mapping[str, Places]
    parameters: Mapping[str, tuple[int, Places]] = field(default_factory=dict)
    sizes: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def roles(self) -> Iterator[Role]:
        """The role of every part and parameter; roots are heads."""
        for makes, parts in ((True, self.made), (False, self.read)):
            for path, places in parts.items():
                yield Role(path, makes, *_numbered(places))
        for path, (dim, places) in self.parameters.items():
            yield Role(path, True, *_numbered(places), dim)

    def paths(self) -> set[str]:
        """Paths of the modules that change where heads are removed."""
        owners = (path.rpartition(".")[0] for path in self.parameters)
        return {*self.made, *self.read, *owners, *(path for path, _ in self.sizes)}

    def weights(self, model: nn.Module) -> HeadWeights:
        """What linear layers and convolutions hold of each head."""
        slices = []
        for role in self.roles():
            module = model.get_submodule(role.path) if role.dim is None else None
            if isinstance(module, (nn.Linear, _ConvNd)) and (role.makes or getattr(module, "groups", 1) == 1):
                own, roots = (torch.tensor(numbers, device=module.weight.device) for numbers in (role.own, role.roots))
                slices.append(Slice(module.weight, 0 if role.makes else 1, own, roots))
        return HeadWeights(self.num_heads, slices)

    def left_in(self, model: nn.Module) -> int:
        """The number of heads in a model that may have lost some."""
        path, places = next(iter(self.read.items()))
        module = model.get_submodule(path)
        width = module.in_features if isinstance(module, nn.Linear) else int(vars(module)["in_channels"])
        return width // len(places[0])

    def remove(self, model: nn.Module, lost: Sequence[int]) -> None:
        """Remove heads from `model` in place."""
        for path, places in self.made.items():
            _cut(model.get_submodule(path), True, sorted(chain.from_iterable(places[head] for head in lost)))
        for path in self.read.keys() - self.made.keys():
            _cut(model.get_submodule(path), False, sorted(chain.from_iterable(self.read[path][head] for head in lost)))
        for path, (dim, places) in self.parameters.items():
            gone = set(chain.from_iterable(places[head] for head in lost))
            owner, _, name = path.rpartition(".")
            old = model.get_parameter(path)
            left = torch.tensor([i for i in range(old.shape[dim]) if i not in gone], device=old.device)
            setattr(
                model.get_submodule(owner), name, nn.Parameter(old.detach().index_select(dim, left), old.requires_grad)
            )
        for (path, name), size in self.sizes.items():
            setattr(model.get_submodule(path), name, size // self.num_heads * (self.num_heads - len(lost)))


def _numbered(places: Places) -> tuple[tuple[int, ...], tuple[int, ...]]:
    own = tuple(chain.from_iterable(places))
    return own, tuple(head for head, channels in enumerate(places) for _ in channels)


def _cut(module: nn.Module, makes: bool, channels: list[int]) -> None:
    """Remove channels that a part makes or reads."""
    if isinstance(module, nn.Linear):
        (tp.prune_linear_out_channels if makes else tp.prune_linear_in_channels)(module, channels)
    elif isinstance(module, nn.Embedding):
        tp.prune_embedding_out_channels(module, channels)
    elif isinstance(module, _BatchNorm):
        tp.prune_batchnorm_out_channels(module, channels)
    elif isinstance(module, _ConvNd) and module.groups > 1:
        tp.prune_depthwise_conv_out_channels(module, channels)
    else:
        (tp.prune_conv_out_channels if makes else tp.prune_conv_in_channels)(module, channels)
