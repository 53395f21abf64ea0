"""Samples as every part of slimfront reads them: tensors and their target, checked against the contract one by one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils._pytree import tree_map  # the maps of trees in torch.utils.pytree are of another kind of tree
from torch.utils.data import TensorDataset

from ..core.batch import Batch, from_names, mapped, shapes_of
from ..core.errors import WorkloadError, describe_exception
from ..core.interrupts import raise_if_interrupted
from .calls import batch_of


class MapDataset(Protocol):
    """A map-style data set of (input, target) pairs, such as `torch.utils.data.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class InputKinds:
    """The inputs that every sample has, by which those of a data set are converted and checked.

    Attributes:
        names: of several inputs; None for a single one.
        kinds: (name, shape, type) of each, as slimfront computes with it; a single one has no name.
    """

    names: tuple[str, ...] | None
    kinds: Sequence[tuple[str, tuple[int, ...], torch.dtype]]

    @classmethod
    def of(cls, example: Batch) -> InputKinds:
        """Of a batch of one sample."""
        names = tuple(example) if isinstance(example, dict) else None
        return cls(names, shapes_of(mapped(lambda tensor: plain_input(tensor)[0], example)))

    def read(self, inputs: Any, where: str) -> Batch:
        """A sample's inputs as tensors, floats in float32.

        Raises:
            WorkloadError: they are others, or not finite.
        """
        try:
            given = {"": inputs} if self.names is None else batch_of(inputs, self.names)
        except ValueError as error:
            raise WorkloadError(f"{where}'s input {error}, as example_inputs") from error
        read = {name: self._tensor(tensor_of(given[name]), shape, dtype, f"{where}'s input {name}".strip())
                for name, shape, dtype in self.kinds}  # fmt: skip
        return from_names(read, "")

    def _tensor(self, value: Any, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> Tensor:
        tensor = plain_input(value) if isinstance(value, Tensor) else value
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise WorkloadError(f"{where} must be {dtype} {list(shape)}, as in example_inputs, not {kind_of(value)}")
        if (problem := flaw_of(tensor)) is not None:
            raise WorkloadError(f"{where} {problem}")
        return tensor


Collate = Callable[[list[Any]], Any]
"""A list of (input, target) pairs, as a data set gives them -> (inputs [n, ...], targets [n, ...])."""

Transform = Callable[[Any], Any]
"""A sample's input as a data set gives it -> another one."""


@dataclass(frozen=True)
class Reading:
    """How the samples of a data set become batches.

    Attributes:
        collate: makes a batch of samples; None is torch's default collation.
        transform: changes the input of each sample as it is read.
        workers: the number of processes that read ahead; 0 reads in between.
    """

    collate: Collate | None = None
    transform: Transform | None = None
    workers: int = 0


def samples(
    split: str, dataset: MapDataset, kinds: InputKinds, classes: int | None, reading: Reading = Reading()
) -> MapDataset:
    """`dataset` with inputs as tensors, floats in float32, detached from any graph, and integer targets in int64.

    Plain tensors are converted once and stay plain tensors; whatever else is read sample by sample, and each sample is
    held against the contract as it is read.

    Args:
        split: what errors call it.
        kinds: the inputs that every sample has.
        classes: the model's, where targets have to be among them.
    """
    is_plain = type(dataset) is TensorDataset and len(dataset.tensors) == 2 and kinds.names is None
    if is_plain and reading.collate is None and reading.transform is None:
        assert isinstance(dataset, TensorDataset)
        converted = plain_input(dataset.tensors[0]), plain_target(dataset.tensors[1])
        same = all(own is given for own, given in zip(converted, dataset.tensors, strict=True))
        return cast("MapDataset", dataset if same else TensorDataset(*converted))
    return Samples(split, dataset, kinds, classes, reading)


class Samples:
    """A map-style data set whose samples are converted and checked as they are read.

    Raises:
        WorkloadError: on reading a sample that cannot be read or breaks the contract; it names split and index.
    """

    def __init__(
        self, split: str, dataset: MapDataset, kinds: InputKinds, classes: int | None, reading: Reading = Reading()
    ) -> None:
        self._split, self._dataset, self._kinds, self._classes = split, dataset, kinds, classes
        self.reading = reading

    def read_by(self, workers: int) -> Samples:
        """These samples, read ahead by so many processes."""
        reading = replace(self.reading, workers=workers)
        return Samples(self._split, self._dataset, self._kinds, self._classes, reading)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as `classes` or `indices`, is the data set's own."""
        if name.startswith("_"):  # copies and pickles ask for these before there is a data set
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        where = f"{self._split}[{index}]"
        inputs, target = self.pair(index)
        if self.reading.collate is not None:
            inputs, target = _first(collated([(inputs, target)], self.reading.collate, where))
        batch = self._kinds.read(inputs, where)
        if self._classes is not None and not is_class(target, self._classes):
            raise WorkloadError(f"{where}'s target {class_range(self._classes)}, not {target!r}")
        return batch, plain_target(target)

    def pair(self, index: int) -> tuple[Any, Any]:
        """The pair at `index` as the data set gives it, its input transformed; a collation of its own takes these."""
        where = f"{self._split}[{index}]"
        inputs, target = read_pair(self._dataset, index, where)
        return (
            inputs if self.reading.transform is None else _transformed(inputs, self.reading.transform, where)
        ), target

    def batch(self, pairs: list[Any]) -> tuple[Batch, Any]:
        """(inputs [n, ...], targets) of pairs, by the data set's own collation."""
        assert self.reading.collate is not None, "torch's default collation takes samples, not pairs"
        inputs, targets = collated(pairs, self.reading.collate, f"a batch of {self._split}")
        self._kinds.read(_first((inputs, ()))[0], f"a batch of {self._split}, its first sample")
        given = inputs if self._kinds.names is None else batch_of(inputs, self._kinds.names)
        return mapped(plain_input, given), plain_target(targets)


def collated(pairs: list[Any], collate: Collate, where: str) -> tuple[Any, Any]:
    """What a workload's own collation makes of pairs.

    Raises:
        WorkloadError: it fails, or makes something else.
    """
    try:
        made = collate(pairs)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"{where} cannot be collated: {describe(error)}") from error
    if not (isinstance(made, (tuple, list)) and len(made) == 2):
        raise WorkloadError(f"{where}: collate must return (inputs, targets), not {kind_of(made)}")
    return made[0], made[1]


def _transformed(inputs: Any, transform: Transform, where: str) -> Any:
    try:
        return transform(inputs)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"{where}: train_transform raised {describe(error)}") from error


def _first(batch: Any) -> Any:
    """The first sample of a batch, in whatever holds its tensors."""
    return tree_map(lambda leaf: leaf[0] if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim else leaf, batch)


def read_pair(dataset: MapDataset, index: int, where: str) -> tuple[Any, Any]:
    """The (inputs, target) pair at `index`.

    Raises:
        WorkloadError: it cannot be read, or is something else.
    """
    try:
        item: Any = dataset[index]
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"{where} cannot be read: {describe(error)}") from error
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        count = f" of {len(item)}" if isinstance(item, (tuple, list, dict)) else ""
        raise WorkloadError(f"{where} must be an (input, target) pair, not {kind_of(item)}{count}")
    inputs, target = item
    return inputs, target


def tensor_of(value: Any) -> Any:
    """What a data set gives as a tensor, as torch's default collation takes it: arrays, numbers, images [channels, h, w]; else
    itself."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value))  # copied: torch takes no array that may not be written
    if isinstance(value, (bool, int, float)):
        return torch.tensor(value)
    if isinstance(value, Image):
        from torchvision.transforms.functional import pil_to_tensor  # only here: importing it takes two seconds

        return pil_to_tensor(value)
    return value


def plain_input(inputs: Tensor) -> Tensor:
    """Inputs without a graph, floats of any width in float32."""
    inputs = inputs.detach() if inputs.requires_grad else inputs
    return inputs.to(torch.float32) if inputs.is_floating_point() else inputs


def plain_target(target: Any) -> Any:
    """A target as the losses of torch take it: whole numbers int64, others float32, in whatever holds them; all else as it is."""
    return tree_map(_plain_leaf, target)


def _plain_leaf(target: Any) -> Any:
    if isinstance(target, (np.ndarray, np.generic)):
        target = tensor_of(target)
    if isinstance(target, float):
        return torch.tensor(target)
    if not isinstance(target, Tensor):
        return target
    target = target.detach() if target.requires_grad else target
    if target.is_floating_point():
        return target.to(torch.float32)
    return target if target.is_complex() or target.dtype == torch.bool else target.to(torch.int64)


def flaw_of(values: Tensor) -> str | None:
    """What is wrong with values that have to be finite; None where nothing is."""
    # A sum with NaN or an infinity in it is not finite, and takes a fortieth of the time; one that is only too large is looked into.
    if not values.is_floating_point() or bool(values.sum().isfinite()) or bool(values.isfinite().all()):
        return None
    what = "NaN" if bool(values.isnan().any()) else "an infinity"
    return f"holds {what}; repair it (torch.nan_to_num) or leave the sample out"


def is_class(target: Any, classes: int) -> bool:
    """Whether a target is one of the classes from 0 to `classes` - 1."""
    try:
        return getattr(target, "ndim", 0) == 0 and 0 <= operator.index(target) < classes
    except TypeError:  # not a whole number
        return False


def class_range(classes: int) -> str:
    """What a target has to be, as errors say it."""
    return f"must be a class from 0 to {classes - 1}, the model's outputs"


def describe(error: BaseException) -> str:
    """An exception's type and message as one line of at most 300 characters."""
    return describe_exception(error, 300)


def kind_of(value: Any) -> str:
    """A tensor's type and shape, those of what holds tensors, or the type of anything else."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{value.dtype} {list(value.shape)}"
    parts = [*value.items()] if isinstance(value, Mapping) else [*enumerate(value)] if isinstance(value, tuple) else []
    if parts and all(isinstance(part, Tensor) for _, part in parts):
        return ", ".join(f"{name} {kind_of(part)}" for name, part in parts)
    return type(value).__name__
