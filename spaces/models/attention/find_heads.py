"""Finds the heads of attention, however it is spelt: which channels of which layers make up each.

A layer that reads a product of computed matrices is an attention's output; the layers that feed it are its projections. Channels that
influence one another between them belong to one head: rows of queries, keys and values and columns of the output. Heads that
share keys and values, as of grouped-query attention, are one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ....core.batch import Batch, shapes_of
from ..architecture import architecture
from .head_sizes import with_sizes
from .heads import Heads, Places
from .influence import Influence, Numbers

MOST_PARTS = 200
"""The most layers of an attention; where more feed it, its projections are not layers."""

ENTRIES = 8
"""The number of architectures whose heads are remembered: every trial traces the same model."""

ONE = (
    "its heads cannot be separated: there is one, or every channel of its output depends on all others, as after a norm over all heads or "
    "where queries, keys and values are not made by layers that are called"
)
NOT_LAYERS = "its queries, keys and values are not the outputs of layers that are called as modules"
UNEQUAL = "its heads are not of one size, or share a layer unevenly"
SHARED = "its heads share {parameter}, which has no dimension of heads"

Found = tuple[dict[str, Heads], dict[str, str]]

_known: OrderedDict[tuple, Found] = OrderedDict()


def find_heads(model: nn.Module, example_input: Batch) -> Found:
    """Attentions of `model` whose heads can be removed, by name, and why not those of others.

    Args:
        model: in eval mode; left as it is.
        example_input: shape [1, ...].
    """
    shapes = tuple(tuple(parameter.shape) for parameter in model.parameters())
    key = (architecture(model), shapes, tuple(shapes_of(example_input)))
    found = _known.pop(key, None) or _found(model, example_input)
    _known[key] = found
    while len(_known) > ENTRIES:
        _known.popitem(last=False)
    return found


def _found(model: nn.Module, example_input: Batch) -> Found:
    influence = Influence(model, example_input)
    found: dict[str, Heads] = {}
    refused: dict[str, str] = {}
    done: set[str] = set()
    for reader in influence.read:
        if reader not in influence.mixes or reader in done:
            continue
        region = _region(influence, reader)
        done |= region
        heads = _heads_of(influence, reader, region)
        if isinstance(heads, str):
            refused[reader.rpartition(".")[0] or type(model).__name__] = heads
        elif heads.name in found:  # two attentions in one module
            found[next(iter(heads.made))] = replace(heads, name=next(iter(heads.made)))
        else:
            found[heads.name] = heads
    sized, stuck = with_sizes(model, example_input, found)
    return sized, refused | stuck


def _region(influence: Influence, reader: str) -> set[str]:
    """All parts that read what the sources of `reader` make, however far that leads through parts that pass channels on."""
    readers, sources = {reader}, set(influence.sources[reader])
    while len(readers) <= MOST_PARTS:
        more = {
            name
            for name, own in influence.sources.items()
            if own & sources or (name in sources and influence.passes_on(name))
        }
        if more <= readers:
            break
        readers |= more
        sources = sources.union(*(influence.sources[name] for name in more))
    return readers


def _heads_of(influence: Influence, reader: str, readers: set[str]) -> Heads | str:
    """The heads of the attention that `reader` is the output of, or why they cannot be removed."""
    if len(readers) > MOST_PARTS:
        return NOT_LAYERS
    units = _units(influence, reader, sorted(readers))
    if units is None:
        return ONE
    made, read = _places([unit[0] for unit in units]), _places([unit[1] for unit in units])
    if made is None or read is None or not _whole(influence, made, read):
        return UNEQUAL
    parameters: dict[str, tuple[int, Places]] = {}
    for name in sorted(set().union(*(influence.parameters[part] for part in read))):
        dims = _parameter(influence, name, [unit[1] for unit in units])
        if dims is None:
            return SHARED.format(parameter=name)
        parameters |= {name: dims} if dims[1] else {}
    holder = _holder(influence.called, [*made, *read])
    return Heads(holder or next(iter(made)), holder, len(units), made, read, parameters)


def _units(influence: Influence, reader: str, readers: Sequence[str]) -> list[tuple[Numbers, Numbers]] | None:
    """The channels (made, read) of each head, which share out what `reader` reads; None where a head has all of it, or two share some."""
    run = influence.read[reader][0]
    columns = run.shape[influence.axis(reader, run)]
    taken: set[int] = set()
    units: list[tuple[Numbers, Numbers]] = []
    while len(taken) < columns:
        left = sorted(set(range(columns)) - taken)
        size = len(units[0][1][reader]) if units else 1  # the next head is most likely as large and in one piece
        unit = _unit(influence, {reader: set(left[:size])}, readers)
        if units and len(unit[1][reader]) > size:
            unit = _unit(influence, {reader: set(left[:1])}, readers)
        own = unit[1][reader]
        if len(own) == columns or own & taken:
            return None
        taken |= own
        units.append(unit)
    return units


def _unit(influence: Influence, read: Numbers, readers: Sequence[str]) -> tuple[Numbers, Numbers]:
    """All channels (made, read) that depend on those read, on what those depend on, and so on."""
    made: Numbers = {}
    while True:
        more = _joined(made, influence.makers_of(read))
        more = _joined(more, {name: channels for name, channels in read.items() if influence.passes_on(name)})
        if more == made:
            return made, read
        made = more
        more = _joined(read, influence.readers_of(made, readers))
        more = _joined(more, {name: channels for name, channels in made.items() if influence.passes_on(name)})
        if more == read:
            return made, read
        read = more


def _joined(first: Numbers, second: Numbers) -> Numbers:
    return {name: first.get(name, set()) | second.get(name, set()) for name in {**first, **second}}


def _places(units: Sequence[Numbers]) -> dict[str, Places] | None:
    """Part -> channels of each unit; None where units differ in their parts or numbers of channels, or share any."""
    if any(unit.keys() != units[0].keys() for unit in units):
        return None
    found = {name: tuple(tuple(sorted(unit[name])) for unit in units) for name in units[0]}
    for places in found.values():
        if len({len(channels) for channels in places}) > 1 or len(set(chain(*places))) < sum(map(len, places)):
            return None
    return found


def _whole(influence: Influence, made: Mapping[str, Places], read: Mapping[str, Places]) -> bool:
    """Whether every channel of every part is of a head, and no convolution is grouped otherwise than by channels."""
    for parts, runs in ((made, influence.made), (read, influence.read)):
        for name, places in parts.items():
            axis = influence.axis(name, runs[name][0])
            if sum(map(len, places)) != runs[name][0].shape[axis]:
                return False
    grouped = [influence.parts[name] for name in {*made, *read} if not influence.passes_on(name)]
    return not any(isinstance(part, _ConvNd) and part.groups > 1 for part in grouped)


def _parameter(influence: Influence, name: str, units: Sequence[Numbers]) -> tuple[int, Places] | None:
    """The dimension of heads of a parameter, and the indices of each; no indices where every head uses all of it, None where neither
    is the case."""
    parameter = next(own for own, path in influence.names.items() if path == name)
    masks = [influence.of_parameter(parameter, unit) for unit in units]
    if all(mask.equal(masks[0]) for mask in masks):
        return 0, ()
    for dim in range(parameter.ndim):
        used = [mask.movedim(dim, 0).flatten(1).any(1) for mask in masks]
        if torch.stack(used).sum(0).eq(1).all():
            return dim, tuple(tuple(own.nonzero().flatten().tolist()) for own in used)
    return None


def _holder(called: Set[str], paths: Sequence[str]) -> str:
    """The innermost module of those that are called that holds all of `paths`; "" is the model."""
    parts = [path.split(".") for path in paths]
    length = next(
        i for i in range(len(parts[0])) if i + 1 >= min(map(len, parts)) or len({own[i] for own in parts}) > 1
    )
    above = [".".join(parts[0][:end]) for end in range(length, 0, -1)]
    return next((name for name in above if name in called), "")
