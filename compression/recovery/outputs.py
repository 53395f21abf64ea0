"""What a model's outputs mean to distillation and to the damage: logits or probabilities of classes along some axis, or values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...core.batch import Batch, by_name, device_of, mapped
from ...workloads.metrics import NamedMetric, named
from ...workloads.output_kind import LOGITS, OutputKind
from ...workloads.workload import Workload
from ..batches import CALIBRATION_BATCH, input_batches

BATCHES = 10
"""How many calibration batches the outputs are judged from."""

LEAST_SHARE = 1e-3
"""A channel of values varies by at least this share of the mean variance, so that one that hardly varies does not outweigh all others."""

ONLY = ""
"""The name of the output of a model that returns one tensor."""


@dataclass(frozen=True)
class OutputKinds:
    """The kind of each output of a model, by its name; of a model that returns one tensor, by `ONLY`."""

    by_name: Mapping[str, OutputKind]

    @property
    def are_one_classifier(self) -> bool:
        """Whether there is one output, of classes: its damage is in nats."""
        return all(kind.class_axis is not None for kind in self.by_name.values()) and len(self.by_name) == 1

    @property
    def read_by_cross_entropy(self) -> bool:
        """Whether torch's cross-entropy takes the output: its classes are along axis 1."""
        return self.are_one_classifier and self.by_name[ONLY].class_axis == 1

    @property
    def words(self) -> str:
        """The kinds in a few words."""
        return ", ".join(f"{name}: {kind.words}" if name else kind.words for name, kind in self.by_name.items())

    def damage(self, found: Batch, expected: Batch) -> Tensor:
        """How far outputs of a batch are from the `expected` ones, sample by sample, shape [batch]; `OutputKind.damage` of each."""
        return self.total(OutputKind.damage, found, expected)

    def total(self, of_one: Callable[[OutputKind, Tensor, Tensor], Tensor], found: Batch, expected: Batch) -> Tensor:
        """The weighted mean of a function of each output's kind, that output, and the expected one."""
        had, wanted = by_name(found, ONLY), by_name(expected, ONLY)
        weights = sum(kind.weight for kind in self.by_name.values())
        parts = [kind.weight / weights * of_one(kind, had[name], wanted[name]) for name, kind in self.by_name.items()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def mean(self, outputs: Sequence[Batch]) -> Batch:
        """The mean of models' outputs, as `OutputKind.mean` has it."""
        if isinstance(outputs[0], Tensor):
            return self.by_name[ONLY].mean([by_name(each, ONLY)[ONLY] for each in outputs])
        return {name: kind.mean([by_name(each, ONLY)[name] for each in outputs]) for name, kind in self.by_name.items()}


ONE_CLASSIFIER = OutputKinds({ONLY: LOGITS})
"""Logits [batch, classes, ...], the output that cross-entropy reads."""


_FOUND: WeakKeyDictionary[nn.Module, dict[tuple[int, int], OutputKinds]] = WeakKeyDictionary()
"""Model -> (loss, metric) -> the kinds, found once."""


def output_kinds(workload: Workload) -> OutputKinds:
    """The kinds of a workload's outputs, from its metric and loss, the shape of a target, and what the model makes of the calibration split.

    A metric known by name says whether its outputs are values, or where their classes are. Cross-entropy, the loss of a workload that
    brings none, reads classes along axis 1. Elsewhere classes are along the axis that whole-number targets lack, such as the last of
    [batch, positions, classes] for targets [batch, positions], or along axis 1 for targets that are probabilities themselves; everything
    else is values. `Workload.output_kinds` overrides it, output by output.
    """
    found = _FOUND.setdefault(workload.model, {})
    key = id(workload.loss), id(workload.metric)
    if key not in found:
        with torch.random.fork_rng():  # training draws the same numbers with and without this look
            found[key] = _found(workload)
    return found[key]


def _found(workload: Workload) -> OutputKinds:
    entry, said = named(workload.metric), workload.output_kinds
    if workload.loss is None and not said and (entry is None or entry.is_read_by_cross_entropy):
        return ONE_CLASSIFIER
    looks, target = _looks(workload), workload.train[0][1]
    seen = _seen(looks, target) if len(looks) > 1 else {n: look.only_kind(entry, target) for n, look in looks.items()}
    return OutputKinds({name: look.completed(said.get(name, seen[name])) for name, look in looks.items()})


def _seen(looks: Mapping[str, _Look], target: object) -> dict[str, OutputKind]:
    """The kinds of several outputs; a target that is one tensor is for the first that it can be the class of."""
    if not isinstance(target, (Mapping, tuple, list)):
        own = torch.as_tensor(target)
        first = next((name for name, look in looks.items() if look.class_axis(own) is not None), None)
        return {name: look.kind_among_several(own if name == first else None) for name, look in looks.items()}
    targets = [_target_of(target, name, index, len(looks)) for index, name in enumerate(looks)]
    return {name: look.kind_among_several(own) for (name, look), own in zip(looks.items(), targets, strict=True)}


def _target_of(target: Any, name: str, index: int, count: int) -> Tensor | None:
    """The part of a sample's target that an output is for, where targets have names or places as outputs have them."""
    if not isinstance(target, Mapping):
        target = dict([(name, target[index])] if len(target) == count else [])
    return torch.as_tensor(target[name]) if name in target else None


class _Look:
    """What the outputs [batch, ...] of one name are like, batch by batch."""

    def __init__(self, first: Tensor) -> None:
        self.shape, self.ndim = first.shape, first.ndim
        self._channels = [axis for axis in range(first.ndim) if axis != 1]
        self._shift = first.double().mean(dim=self._channels, keepdim=True)
        self._count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())
        self._sums_to_one = dict.fromkeys(range(1, first.ndim), True)

    def add(self, outputs: Tensor) -> None:
        moved = outputs.double() - self._shift
        self._sum = self._sum + moved.sum(dim=self._channels)
        self._squares = self._squares + moved.square().sum(dim=self._channels)
        self._count += moved.numel() // (moved.shape[1] if moved.ndim > 1 else 1)
        for axis, holds in self._sums_to_one.items():
            self._sums_to_one[axis] = holds and _are_probabilities(outputs, axis)

    def kind(self, axis: int | None) -> OutputKind:
        """Values, or classes along an axis."""
        if axis is None:
            return OutputKind(None, variance=self._variance())
        return OutputKind(axis, self._sums_to_one[axis])

    def only_kind(self, entry: NamedMetric | None, target: object) -> OutputKind:
        """The kind of a model's only output, by the metric's entry where it has one that says so."""
        if entry is None or entry.reads == "scores":
            return self.kind(self.class_axis(torch.as_tensor(target)))
        return self.kind(None if entry.class_axis is None else entry.class_axis % self.ndim)

    def kind_among_several(self, target: Tensor | None) -> OutputKind:
        """The kind of one of several outputs, for which there need be no target: what sums to one is probabilities."""
        axis = None if target is None else self.class_axis(target)
        likely = (axis for axis, holds in self._sums_to_one.items() if holds and self.shape[axis] > 1)
        return self.kind(next(likely, None) if axis is None else axis)

    def completed(self, said: OutputKind) -> OutputKind:
        """A kind, perhaps as the workload's owner gave it, with the variance of values."""
        if said.class_axis is None and said.variance is None:
            return replace(said, variance=self._variance())
        return said

    def class_axis(self, target: Tensor) -> int | None:
        """The axis that a sample's target lacks; None where that is no axis of at least two classes."""
        shape = self.shape
        if target.is_floating_point():
            return 1 if target.shape == shape[1:] and _is_distribution(target) else None
        axes = (axis for axis in range(1, self.ndim) if shape[axis] > 1 and target.dtype != torch.bool)
        return next((axis for axis in axes if target.shape == shape[1:axis] + shape[axis + 1 :]), None)

    def _variance(self) -> Tensor | None:
        """Of each channel, axis 1, over the rest; None where nothing varies."""
        variance = (self._squares / self._count - (self._sum / self._count).square()).float()
        mean = float(variance.mean())
        if not mean > 0:
            return None
        return variance.clamp_min(LEAST_SHARE * mean).view(-1, *(1,) * (self.ndim - 2))


@torch.no_grad()
def _looks(workload: Workload) -> dict[str, _Look]:
    """A look at each of the model's outputs on the first calibration batches."""
    looks: dict[str, _Look] = {}
    for outputs in _calibrated(workload):
        for name, output in by_name(outputs, ONLY).items():
            looks.setdefault(name, _Look(output)).add(output)
    return looks


def _calibrated(workload: Workload) -> Iterator[Batch]:
    device = device_of(workload.example_input)
    for batch in islice(input_batches(workload.calibration, CALIBRATION_BATCH, device), BATCHES):
        yield mapped(lambda output: output.float().cpu(), workload.model.eval()(batch))


def _is_distribution(target: Tensor) -> bool:
    """Whether a sample's target is probabilities of at least two classes along its first axis."""
    return target.ndim > 0 and len(target) > 1 and _are_probabilities(target, 0)


def _are_probabilities(values: Tensor, axis: int) -> bool:
    sums = values.float().sum(axis)
    return bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
