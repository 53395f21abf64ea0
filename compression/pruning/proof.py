"""Proves numerically, for every channel group, that removing channels equals masking them.

The dependency graph says which channels of which layers belong together. Where it is wrong, as after a roll, a shuffle or a
slice of every other channel, the pruned model runs but computes something else. So each group loses channels at random, and
every layer that reads the remaining channels must read the same values as in the whole model.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch, largest_difference, rows, taken
from ...core.hooks import removed_after
from ...core.interrupts import raise_if_interrupted
from ...spaces.models.attention.heads import Role
from ...spaces.models.channel_graph import ChannelGraph, channels_lost
from ...spaces.models.channel_groups import ChannelGroup, find_channel_groups
from ...spaces.models.failures import first_line
from ...spaces.models.recurrent import is_recurrent
from ...workloads.contract import few_inputs
from ...workloads.workload import Workload
from ..activations import bytes_read
from .masked_units import masked_units

TOLERANCE = 1e-3
"""The largest difference of a layer's input, relative to its largest value, that rounding may cause: kernels of other widths sum
in another order."""

MOST_READ = 2**28
"""Bytes of modules' inputs that a proof keeps, to compare them with those of the pruned model."""

MISPLACED = (
    "with channels removed, {reader} does not read what it read of the others: channels change places or numbers on the way "
    "(as by roll, flip, a shuffle or a slice), or what is kept is computed from all of them"
)


def proven_groups(workload: Workload) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Groups of a workload's model that can be pruned, and why the others cannot: `find_channel_groups`, proven on its data."""
    model, example = workload.model.eval(), workload.example_input
    groups, unprunable = find_channel_groups(model, example)
    proven, refuted = prove_groups(model, few_inputs(workload), groups)
    return proven, unprunable | refuted


def prove_groups(
    model: nn.Module, inputs: Batch, groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups of which removing channels equals masking them, and {name: why not} of the others.

    All groups lose half of their channels, chosen at random, in one copy; then every other group the first ones, and the rest. In
    the whole model the lost channels are replaced by duplicates of kept ones, so that means and variances over channels, as of a
    layer norm, are the same in both. Every layer of the pruned copy continues with the inputs that it should have read, so that one
    pass judges all groups.

    Args:
        model: in eval mode; left as it is.
        inputs: a few samples, shape [n, ...].
    """
    if not groups:
        return [], {}
    inputs = taken(inputs, slice(_fitting(model, inputs)))
    prover = _Prover(model, ChannelGraph(copy.deepcopy(model), taken(inputs, slice(1))), inputs)
    reasons = prover.refuted(groups)
    # Two groups that fail only apart, as where one layer divides the channels of both, pass together; and channels at random may be
    # the same ones after a flip, which the first ones are not.
    for part in (groups[::2], groups[1::2]):
        reasons |= prover.refuted([group for group in part if group.name not in reasons], first=True)
    reasons |= prover.hidden([group for group in groups if group.name not in reasons])
    return [group for group in groups if group.name not in reasons], reasons


def _fitting(model: nn.Module, inputs: Batch) -> int:
    """How many samples a proof compares: as many as there are, or, at least one, as `MOST_READ` holds what modules read of."""
    return max(1, min(rows(inputs), MOST_READ // max(1, bytes_read(model, taken(inputs, slice(1))))))


@dataclass(frozen=True)
class _Prover:
    """Removes channels of groups and compares.

    Attributes:
        graph: of a copy of the model, which is whole again after each look.
        inputs: of a few samples.
    """

    model: nn.Module
    graph: ChannelGraph
    inputs: Batch

    def refuted(self, groups: Sequence[ChannelGroup], first: bool = False) -> dict[str, str]:
        """{group: reason} of those that fail; where the pruned model does not run at all, by bisection.

        Args:
            first: whether the first channels are lost, else some at random.
        """
        if not groups:
            return {}
        try:
            found, same_outputs = self._one_pass(groups, first)
        except Exception as error:  # the model's own code may raise anything with other widths
            raise_if_interrupted(error)
            return self._bisected(
                groups, first, f"with channels removed at random, the model does not run: {first_line(error)}"
            )
        if same_outputs:
            return found
        if not found:
            return self._bisected(groups, first, MISPLACED.format(reader="the model's output"))
        # The failing groups are known; the others were given correct inputs, and are tried again without them.
        return found | self.refuted([group for group in groups if group.name not in found], first)

    def hidden(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """{group: reason} of those that change the outputs where no reader's input is corrected.

        A reader may compute otherwise from fewer channels, as one that standardises its weight in every pass does, and the correct
        inputs of the next reader hide that.
        """
        if not groups or self._one_pass(groups, False, corrects=False)[1]:
            return {}
        why = MISPLACED.format(reader="the model's output")
        if len(groups) == 1:
            return {groups[0].name: why}
        first, second = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        apart = self.hidden(first) | self.hidden(second)
        return apart or {group.name: f"not together with {second[0].name}: {why}" for group in first}

    def _bisected(self, groups: Sequence[ChannelGroup], first: bool, reason: str) -> dict[str, str]:
        """{group: reason} of those that fail, where no single one was found to; `reason` is that of all `groups` together."""
        if len(groups) == 1:
            return {groups[0].name: reason}
        halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        apart = {name: why for half in halves for name, why in self.refuted(half, first).items()}
        return apart or {group.name: f"not together with {halves[1][0].name}: {reason}" for group in halves[0]}

    @torch.no_grad()
    def _one_pass(
        self, groups: Sequence[ChannelGroup], first: bool, corrects: bool = True
    ) -> tuple[dict[str, str], bool]:
        """{group: reason} of those whose readers read other values, and whether the outputs are the same.

        Args:
            corrects: whether readers continue with the values that they should have read; only then are they compared.
        """
        graph, model = self.graph, self.model
        losses = {
            group.name: _Loss.of(group, graph.partitions(group.name), first, graph.normalises_parts(group.name))
            for group in groups
        }
        plan = _Plan.of({name: list(graph.roles(name)) for name in losses}, losses)
        with masked_units(model, plan.copies), _doubled(model, plan), _masked(model, plan) as read:
            expected = model(self.inputs)
        lost = {name: loss.lost for name, loss in losses.items()}
        with graph.without(lost) as pruned, _corrected(pruned, plan, read) if corrects else nullcontext({}) as failed:
            found = pruned(self.inputs)
        reasons = {name: MISPLACED.format(reader=reader) for name, reader in failed.items()}
        return reasons, largest_difference(expected, found) <= TOLERANCE


@dataclass(frozen=True)
class _Loss:
    """Channels that a group loses, by the indices of its root layer.

    Attributes:
        lost: sorted.
        doubles: lost channel -> the kept one that it duplicates.
    """

    lost: list[int]
    doubles: Mapping[int, int]

    @classmethod
    def of(cls, group: ChannelGroup, partitions: int, first: bool, is_normalised: bool) -> _Loss:
        """Half of the channels of each partition, or two thirds where that keeps the mean over doubles the mean of all."""
        size = group.channels // partitions
        kept = size // 3 if size % 2 and size % 3 == 0 else -(-size // 2)
        chance = torch.Generator().manual_seed(0)
        scores = torch.arange(group.channels).float() if first else torch.rand(group.channels, generator=chance)
        if size == 3 and not first:  # the middle one: a slice of every other channel keeps in step with either end
            scores[1::3] += 1
        lost = channels_lost(scores, kept * partitions, partitions)
        left = sorted(set(range(size)) - set(lost))
        # Duplicates within a part look the same after a flip of all; group norms need them there.
        step = size if first and not is_normalised else 0
        doubles = {
            channel: (channel // size * size + left[i % kept] + step) % group.channels for i, channel in enumerate(lost)
        }
        return cls(lost, doubles)


@dataclass
class _Plan:
    """How the inputs and outputs of modules are changed, by their paths.

    Attributes:
        copies: maker -> (lost channel -> kept channel that it duplicates), by its own indices.
        gone: reader -> channels that it loses, by its own indices.
        parts: reader -> group -> channels of the group that are kept.
        dims: parameter -> dimension of its channels.
    """

    copies: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    gone: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    parts: dict[str, dict[str, set[int]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    dims: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, roles: Mapping[str, Sequence[Role]], losses: Mapping[str, _Loss]) -> _Plan:
        """From the roles that modules have in each group, and what each group loses."""
        plan = cls()
        for name, loss in losses.items():
            for role in roles[name]:
                plan._add(name, role, loss)
        for reader, parts in plan.parts.items():
            for kept in parts.values():
                kept -= plan.gone[reader]
        return plan

    def _add(self, name: str, role: Role, loss: _Loss) -> None:
        if role.dim is not None:
            self.dims[role.path] = role.dim
        if role.makes:
            places: dict[int, list[int]] = defaultdict(list)
            for own, root in zip(role.own, role.roots, strict=True):
                places[root].append(own)
            for lost, kept in loss.doubles.items():
                self.copies[role.path] |= dict(zip(places[lost], places[kept], strict=False))
        else:
            lost = set(loss.lost)
            self.gone[role.path] |= {own for own, root in zip(role.own, role.roots, strict=True) if root in lost}
            self.parts[role.path][name] |= set(role.own)


@contextmanager
def _doubled(model: nn.Module, plan: _Plan) -> Iterator[None]:
    """Have each maker give doubles of kept channels for the lost ones."""
    modules, before = dict(model.named_modules()), {}

    def double(copies: Mapping[int, int], module: nn.Module) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> Any:
            made, *rest = output if isinstance(output, tuple) else (output,)  # an attention gives its weights too
            made = _with_doubles(made, _axis(module, made, max(copies) + 1), copies)
            return (made, *rest) if isinstance(output, tuple) else made

        return hook

    hooks = [
        modules[path].register_forward_hook(double(copies, modules[path]))
        for path, copies in plan.copies.items()
        if path in modules and copies and not is_recurrent(modules[path])
    ]
    try:
        for path, dim in plan.dims.items():
            parameter = model.get_parameter(path)
            before[path] = parameter.data
            parameter.data = _with_doubles(parameter.data, dim, plan.copies[path])
        yield
    finally:
        for path, data in before.items():
            model.get_parameter(path).data = data
        for hook in hooks:
            hook.remove()


def _with_doubles(values: Tensor, axis: int, copies: Mapping[int, int]) -> Tensor:
    lost, kept = (torch.tensor(list(side), device=values.device) for side in (copies.keys(), copies.values()))
    return values.clone().index_copy_(axis, lost, values.index_select(axis, kept))


@contextmanager
def _masked(model: nn.Module, plan: _Plan) -> Iterator[dict[str, list[Tensor]]]:
    """Have each reader compute without the lost channels; yields reader -> its inputs, call by call."""
    read: dict[str, list[Tensor]] = defaultdict(list)

    def mask(path: str) -> Callable[..., Any]:
        gone = torch.tensor(sorted(plan.gone[path]), dtype=torch.long)

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            read[path].append(inputs[0].clone())
            axis = _axis(module, inputs[0], 1)
            return _in_place_of(inputs, inputs[0].index_fill(axis, gone.to(inputs[0].device), 0.0))

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(mask(path)) for path in plan.gone]
    with removed_after(hooks):
        yield read


@contextmanager
def _corrected(pruned: nn.Module, plan: _Plan, read: Mapping[str, list[Tensor]]) -> Iterator[dict[str, str]]:
    """{group: reader} of the groups of which a reader in the pruned model reads other values; it continues with the correct ones."""
    failed: dict[str, str] = {}
    calls: dict[str, int] = defaultdict(int)

    def compare(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            whole = read[path][calls[path]]
            calls[path] += 1
            axis = _axis(module, whole, 1)
            kept = [channel for channel in range(whole.shape[axis]) if channel not in plan.gone[path]]
            expected = whole.index_select(axis, torch.tensor(kept, device=whole.device))
            for group, own in plan.parts[path].items():
                places = [place for place, channel in enumerate(kept) if channel in own]
                if group not in failed and not _is_same(expected, inputs[0], axis, places):
                    failed[group] = path
            return _in_place_of(inputs, expected)

        return hook

    hooks = [pruned.get_submodule(path).register_forward_pre_hook(compare(path)) for path in plan.gone]
    with removed_after(hooks):
        yield failed


def _in_place_of(inputs: tuple[Any, ...], changed: Tensor) -> tuple[Any, ...]:
    """The inputs with the first one replaced wherever it occurs: as query, key and value of an attention."""
    return tuple(changed if each is inputs[0] else each for each in inputs)


def _is_same(expected: Tensor, found: Tensor, axis: int = 0, places: Sequence[int] | None = None) -> bool:
    """Whether two tensors agree up to rounding, everywhere or at some places along an axis."""
    if expected.shape != found.shape:
        return False
    largest = expected.abs().max()
    if places is not None:
        index = torch.tensor(places, device=expected.device, dtype=torch.long)
        expected, found = expected.index_select(axis, index), found.index_select(axis, index)
    return not expected.numel() or bool((expected - found).abs().max() <= TOLERANCE * largest)


def _axis(module: nn.Module, values: Tensor, channels: int) -> int:
    """The axis of a module's channels in its input or output: the last for modules that work on vectors, else the second."""
    vectors = isinstance(module, (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase))
    axis = values.ndim - 1 if vectors else 1
    # A layer norm of images is a subclass that permutes them; the axis is the one with enough channels.
    return axis if values.shape[axis] >= channels else 1
