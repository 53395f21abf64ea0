"""Sizes that modules have written down and that change with their number of heads: found by trying, on the module alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ....core.batch import Batch
from ....core.hooks import removed_after
from ....core.interrupts import raise_if_interrupted
from ..failures import place_of
from .heads import Heads
from .influence import PARTS

TOLERANCE = 1e-3
"""The largest difference, relative to the largest value, that rounding may cause."""

STUCK = "without some of its heads forward fails in {place}, which has their number, or the width of all, written down"
OTHERS = "without some of its heads it does not compute what it computed of the others"

Call = tuple[tuple, dict]
"""Positional and named arguments."""


@torch.no_grad()
def with_sizes(
    model: nn.Module, example_input: Batch, found: Mapping[str, Heads]
) -> tuple[dict[str, Heads], dict[str, str]]:
    """The heads with the sizes that have to change with their number, and why those that cannot be removed cannot."""
    calls = _calls(model, example_input, {heads.holder for heads in found.values()})
    sized: dict[str, Heads] = {}
    stuck: dict[str, str] = {}
    for name, heads in found.items():
        module, call = model.get_submodule(heads.holder), calls[heads.holder]
        for own in (replace(heads, sizes=sizes) for sizes in _candidates(model, heads)):
            if (reason := _why_stuck(module, own, call)) is None:
                sized[name] = own
                break
            stuck.setdefault(name, reason)
    return sized, {name: reason for name, reason in stuck.items() if name not in sized}


def _calls(model: nn.Module, example_input: Batch, names: Set[str]) -> dict[str, Call]:
    """Module -> the arguments of its first call."""
    calls: dict[str, Call] = {}

    def note(name: str) -> Any:
        return lambda _module, args, options: calls.setdefault(name, (args, options)) and None

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True) for name in names]
    with removed_after(hooks):
        model(example_input)
    return calls


def _candidates(model: nn.Module, heads: Heads) -> Iterator[dict[tuple[str, str], int]]:
    """Sizes that may be proportional to the number of heads: none, those that are named after heads, and widths of its layers too."""
    counts: dict[tuple[str, str], int] = {}
    widths: dict[tuple[str, str], int] = {}
    wide = {sum(map(len, places)) for places in (*heads.read.values(), *heads.made.values())}
    for path, module in model.get_submodule(heads.holder).named_modules(prefix=heads.holder):
        for name, value in vars(module).items() if not isinstance(module, PARTS) else ():
            if type(value) is not int or value % heads.num_heads or not value:
                continue
            if "head" in name and not name.endswith(("dim", "size", "width", "groups")):
                counts[path, name] = value
            elif value in wide:
                widths[path, name] = value
    yield from ({}, counts, {**counts, **widths})


def _why_stuck(module: nn.Module, heads: Heads, call: Call) -> str | None:
    """Why the module without some of its heads does not compute of the others what it computed, or None where it does."""
    lost = torch.randperm(heads.num_heads, generator=torch.Generator().manual_seed(0))[: heads.num_heads // 2].tolist()
    own = _within(heads)
    slim = copy.deepcopy(module)
    own.remove(slim, lost)
    slim.train()  # which has modules drop what they kept of calls in evaluation mode
    slim.eval()
    expected = _reads(module, own, call, lost)
    try:
        read = _reads(slim, own, call)
    except Exception as error:  # the model's own code may raise anything
        raise_if_interrupted(error)
        return STUCK.format(place=place_of(error))
    same = all(_same(module, own, name, lost, expected[name], read[name]) for name in own.read)
    return None if same else OTHERS


def _same(
    module: nn.Module, heads: Heads, name: str, lost: Sequence[int], expected: Sequence[Tensor], found: Sequence[Tensor]
) -> bool:
    """Whether a part has read of the heads that are left what it read with all of them."""
    places = heads.read[name]
    left = sorted(set(chain(*places)) - {channel for head in lost for channel in places[head]})
    for whole, reduced in zip(expected, found, strict=True):
        axis = _axis(module.get_submodule(name), whole)
        kept = whole.index_select(axis, torch.tensor(left, device=whole.device))
        if kept.shape != reduced.shape or (kept - reduced).abs().max() > TOLERANCE * whole.abs().max():
            return False
    return True


def _axis(part: nn.Module, values: Tensor) -> int:
    return values.ndim - 1 if isinstance(part, nn.Linear) else 1


def _within(heads: Heads) -> Heads:
    """The same with paths as seen from the module that holds them."""
    start = len(heads.holder) + 1 if heads.holder else 0
    inner = {
        key: {path[start:]: own for path, own in getattr(heads, key).items()} for key in ("made", "read", "parameters")
    }
    return replace(heads, **inner, sizes={(path[start:], name): size for (path, name), size in heads.sizes.items()})


def _reads(module: nn.Module, heads: Heads, call: Call, lost: Sequence[int] = ()) -> dict[str, list[Tensor]]:
    """What the parts of a module read in a call in which `lost` heads count as zero."""
    found: dict[str, list[Tensor]] = {name: [] for name in heads.read}

    def note(name: str) -> Any:
        gone = torch.tensor([channel for head in lost for channel in heads.read[name][head]], dtype=torch.long)

        def hook(part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            found[name].append(inputs[0].clone())
            return (inputs[0].index_fill(_axis(part, inputs[0]), gone.to(inputs[0].device), 0.0), *inputs[1:])

        return hook

    hooks = [module.get_submodule(name).register_forward_pre_hook(note(name)) for name in heads.read]
    with removed_after(hooks):
        module(*call[0], **call[1])
    return found
