"""What a proof changes and compares: channels lost, doubles of kept ones in their place, and what modules read and make of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.hooks import removed_after
from ...spaces.models.attention.heads import Role
from ...spaces.models.channel_graph import channels_lost
from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.models.recurrent import is_recurrent

TOLERANCE = 1e-3
"""The largest difference of a layer's input, relative to its largest value, that rounding may cause: kernels of other widths sum
in another order."""


@dataclass(frozen=True)
class Loss:
    """Channels that a group loses, by the indices of its root layer.

    Attributes:
        lost: sorted.
        doubles: lost channel -> the kept one that it duplicates.
    """

    lost: list[int]
    doubles: Mapping[int, int]

    @classmethod
    def of(cls, group: ChannelGroup, partitions: int, first: bool, is_normalised: bool) -> Loss:
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
class Plan:
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
    def of(cls, roles: Mapping[str, Sequence[Role]], losses: Mapping[str, Loss]) -> Plan:
        """From the roles that modules have in each group, and what each group loses."""
        plan = cls()
        for name, loss in losses.items():
            for role in roles[name]:
                plan._add(name, role, loss)
        for reader, parts in plan.parts.items():
            for kept in parts.values():
                kept -= plan.gone[reader]
        return plan

    def _add(self, name: str, role: Role, loss: Loss) -> None:
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
def doubled(model: nn.Module, plan: Plan) -> Iterator[None]:
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


@dataclass(frozen=True)
class Seen:
    """What readers read in the whole model, and what those that lose no channels of their own made of it: path -> call by call."""

    read: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    made: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


@contextmanager
def masked(model: nn.Module, plan: Plan) -> Iterator[Seen]:
    """Have each reader compute without the lost channels; yields what they read and made."""
    seen = Seen()

    def mask(path: str) -> Callable[..., Any]:
        gone = torch.tensor(sorted(plan.gone[path]), dtype=torch.long)

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.read[path].append(inputs[0].clone())
            axis = _axis(module, inputs[0], 1)
            return _in_place_of(inputs, inputs[0].index_fill(axis, gone.to(inputs[0].device), 0.0))

        return hook

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.made[path].append(output.clone())

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(mask(path)) for path in plan.gone]
    whole = [path for path in plan.gone if path not in plan.copies]
    hooks += [model.get_submodule(path).register_forward_hook(keep(path)) for path in whole]
    with removed_after(hooks):
        yield seen


@contextmanager
def corrected(pruned: nn.Module, plan: Plan, seen: Seen) -> Iterator[dict[str, str]]:
    """{group: reader} of the groups of which a reader in the pruned model reads other values, or makes others of the correct ones, with
    which it continues: as one that standardises its weight over fewer channels."""
    failed: dict[str, str] = {}
    calls: dict[str, int] = defaultdict(int)

    def compare(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            whole = seen.read[path][calls[path]]
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

    def agree(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            whole = seen.made[path][calls[path] - 1]
            if whole.shape == output.shape and not _is_same(whole, output):
                failed.update({group: path for group in plan.parts[path] if group not in failed})

        return hook

    hooks = [pruned.get_submodule(path).register_forward_pre_hook(compare(path)) for path in plan.gone]
    hooks += [pruned.get_submodule(path).register_forward_hook(agree(path)) for path in seen.made]
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
