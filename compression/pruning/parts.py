"""Parts of a model that a policy removes: channels, heads and single weights, measured and scaled where they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.batch import Batch
from ...spaces.models.attention.heads import Role, Slice
from ...spaces.models.channel_graph import ChannelGraph, channels_lost, out_channels
from ...spaces.models.layers import WeightedLayer, layer_at
from ...spaces.models.recurrent import RECURRENT_KINDS, RecurrentLayer, channels_of, weights_by_channel
from ...spaces.policies.policy import Policy
from ...spaces.policies.sparsity import Sparsity, threshold_of
from .prune import global_masks, two_of_four_mask

LAYERS_AND_NORMS = (*get_args(WeightedLayer), *RECURRENT_KINDS, _BatchNorm, nn.LayerNorm, nn.GroupNorm)

Values = Callable[[Tensor], Tensor]
"""Parameter -> the tensor that is read or changed in its place."""


class Part(ABC):
    """What is driven to zero together, in members of one or several weights each."""

    parameters: Sequence[Tensor]

    @abstractmethod
    def norms(self, values: Values) -> Tensor:
        """The L2 norm of each member, shape [members]."""

    @abstractmethod
    def scale(self, values: Values, factors: Tensor) -> None:
        """Multiply every member by its factor [members], in place."""

    @abstractmethod
    def kept(self, norms: Tensor) -> Tensor:
        """1 for members that pruning to the policy would keep, else 0, shape [members]."""


class Channels(Part):
    """A group's channels, each with every weight that makes or reads it; or an attention's heads."""

    def __init__(self, slices: Sequence[Slice], channels: int, left: int, partitions: int) -> None:
        self.slices, self.channels, self.left, self.partitions = slices, channels, left, partitions
        self.parameters = [part.weight for part in slices]

    def norms(self, values: Values) -> Tensor:
        sums = torch.zeros(self.channels, device=self.parameters[0].device)
        for part in self.slices:
            rows = values(part.weight).index_select(part.dim, part.own).movedim(part.dim, 0)
            sums.index_add_(0, part.roots, rows.reshape(len(rows), -1).square().sum(1))
        return sums.sqrt()

    def scale(self, values: Values, factors: Tensor) -> None:
        for part in self.slices:
            weight = values(part.weight)
            along = torch.ones(weight.shape[part.dim], dtype=weight.dtype, device=weight.device)
            along[part.own] = factors[part.roots].to(weight.dtype)
            weight.mul_(along.view([-1 if dim == part.dim else 1 for dim in range(weight.ndim)]))

    def kept(self, norms: Tensor) -> Tensor:
        mask = torch.ones_like(norms)
        mask[channels_lost(norms, self.left, self.partitions)] = 0
        return mask


class Weights(Part):
    """Single weights of layers, ranked together."""

    def __init__(self, sparsities: Mapping[str, Sparsity], layers: Mapping[str, WeightedLayer]) -> None:
        self.sparsities, self.layers = sparsities, layers
        self.parameters = [layers[name].weight for name in sparsities]

    def norms(self, values: Values) -> Tensor:
        return torch.cat([values(weight).abs().flatten() for weight in self.parameters])

    def scale(self, values: Values, factors: Tensor) -> None:
        sizes = [weight.numel() for weight in self.parameters]
        for weight, own in zip(self.parameters, factors.split(sizes), strict=True):
            values(weight).mul_(own.view_as(weight))

    def kept(self, norms: Tensor) -> Tensor:
        parts = norms.split([weight.numel() for weight in self.parameters])
        scores = {
            name: own.view_as(weight) for name, own, weight in zip(self.sparsities, parts, self.parameters, strict=True)
        }
        fractions = {name: value for name, value in self.sparsities.items() if not isinstance(value, str)}
        masks = global_masks({name: scores[name] for name in fractions}, fractions) if fractions else {}
        masks |= {name: _patterned(scores[name], str(self.sparsities[name])) for name in scores if name not in masks}
        return torch.cat([masks[name].flatten() for name in scores])


def _patterned(magnitudes: Tensor, sparsity: str) -> Tensor:
    threshold = threshold_of(sparsity)
    if threshold is None:
        return two_of_four_mask(magnitudes)
    return (magnitudes >= threshold * magnitudes.square().mean().sqrt()).to(magnitudes.dtype)


def parts_of(model: nn.Module, example_input: Batch, policy: Policy, kept: Mapping[str, int]) -> list[Part]:
    """What pruning `model` to `policy` removes: channels and heads of the groups in `kept`, which maps them to how many are left, and
    single weights. The parts' weights are the model's."""
    graph = ChannelGraph(model, example_input)
    parts: list[Part] = [_channels(graph, name, left) for name, left in kept.items()]
    return parts + _single_weights(model, policy)


def _single_weights(model: nn.Module, policy: Policy) -> list[Part]:
    """The single weights that pruning removes: layer by layer, or of all layers with a fraction together where the scope is global."""
    sparsities = {name: layer.sparsity for name, layer in policy.layers.items() if layer.sparsity}
    layers = {name: layer_at(model, name) for name in sparsities}
    together = {}
    if policy.pruning.scope == "global":
        together = {name: value for name, value in sparsities.items() if not isinstance(value, str)}
    alone = [{name: value} for name, value in sparsities.items() if name not in together]
    return [Weights(each, layers) for each in [together, *alone] if each]


def scales_of(model: nn.Module, example_input: Batch, kept: Mapping[str, int]) -> list[Part]:
    """As `parts_of`, but of a group's channels only the scales of batch-norms; groups without any are left out."""
    graph = ChannelGraph(model, example_input)
    parts = [_channels(graph, name, left, (_BatchNorm,)) for name, left in kept.items() if name not in graph.heads]
    return [part for part in parts if part.slices]


def _channels(
    graph: ChannelGraph, name: str, left: int, kinds: tuple[type[nn.Module], ...] = LAYERS_AND_NORMS
) -> Channels:
    if name in graph.heads:
        weights = graph.heads[name].weights(graph.model)
        return Channels(weights.slices, weights.num_heads, left, 1)
    slices = [part for role in graph.roles(name) for part in _slices(graph.model, role, kinds)]
    return Channels(slices, out_channels(graph.model.get_submodule(name)), left, graph.partitions(name))


def _slices(model: nn.Module, role: Role, kinds: tuple[type[nn.Module], ...]) -> Iterable[Slice]:
    """The weight of a module of one of these kinds, if the channels are along a dimension of it."""
    module = model.get_submodule(role.path) if role.dim is None else None
    if not isinstance(module, kinds):
        return
    if isinstance(module, RecurrentLayer):
        yield from _unit_slices(module, role)
        return
    weight = getattr(module, "weight", None)
    dim = 0 if role.makes else 1
    # What a grouped convolution reads is not numbered along its weight.
    is_along = role.own and (role.makes or getattr(module, "groups", 1) == 1)
    if isinstance(weight, Tensor) and is_along and weight.ndim > dim and weight.shape[dim] > max(role.own):
        yield Slice(weight, dim, _numbers(role.own, weight), _numbers(role.roots, weight))


def _unit_slices(layer: RecurrentLayer, role: Role) -> Iterator[Slice]:
    """The rows of all gates of each unit and the columns that read it, or the columns of each input."""
    of = channels_of(layer, role.makes)
    for weight, place in weights_by_channel(layer, role.makes):
        own, roots = _numbers(place.numbers(role.own, of), weight), _numbers(role.roots, weight)
        yield Slice(weight, place.dim, own, roots.repeat(place.copies))


def _numbers(numbers: Sequence[int], weight: Tensor) -> Tensor:
    return torch.tensor(list(numbers), device=weight.device)
