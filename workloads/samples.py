"""Samples as every part of slimfront reads them: a float32 tensor and its target, checked against the contract one by one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..core.errors import WorkloadError, describe_exception
from ..core.interrupts import raise_if_interrupted


class MapDataset(Protocol):
    """A map-style data set of (input, target) pairs, such as `torch.utils.data.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, ...]: ...


def samples(split: str, dataset: MapDataset, example: Tensor, classes: int | None) -> MapDataset:
    """`dataset` with inputs in float32, detached from any graph, and integer targets in int64.

    Plain tensors are converted once and stay plain tensors; whatever else is read sample by sample, and each sample is
    held against the contract as it is read.

    Args:
        split: what errors call it.
        example: one sample of the model's input, whose shape every input has.
        classes: the model's, where targets have to be among them.
    """
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        converted = plain_input(dataset.tensors[0]), plain_target(dataset.tensors[1])
        same = all(own is given for own, given in zip(converted, dataset.tensors, strict=True))
        return cast("MapDataset", dataset if same else TensorDataset(*converted))
    return Samples(split, dataset, tuple(example.shape), classes)


class Samples:
    """A map-style data set whose samples are converted and checked as they are read.

    Raises:
        WorkloadError: on reading a sample that cannot be read or breaks the contract; it names split and index.
    """

    def __init__(self, split: str, dataset: MapDataset, shape: Sequence[int], classes: int | None) -> None:
        self._split, self._dataset, self._shape, self._classes = split, dataset, list(shape), classes

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as `classes` or `indices`, is the data set's own."""
        if name.startswith("_"):  # copies and pickles ask for these before there is a data set
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        where = f"{self._split}[{index}]"
        inputs, target = read_pair(self._dataset, index, where)
        if list(getattr(inputs, "shape", ())) != self._shape or not isinstance(inputs, Tensor):
            raise WorkloadError(f"{where}'s input must be a tensor of shape {self._shape}, not {kind_of(inputs)}")
        if (problem := flaw_of(inputs)) is not None:
            raise WorkloadError(f"{where}'s input {problem}")
        if self._classes is not None and not is_class(target, self._classes):
            raise WorkloadError(f"{where}'s target {class_range(self._classes)}, not {target!r}")
        return plain_input(inputs), plain_target(target)


def read_pair(dataset: MapDataset, index: int, where: str) -> tuple[Any, Any]:
    """The (input, target) pair at `index`, its input a tensor.

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
    return (torch.from_numpy(np.array(inputs)) if isinstance(inputs, np.ndarray) else inputs), target


def plain_input(inputs: Tensor) -> Tensor:
    """Inputs as float32 without a graph; integers are exact up to 2^24."""
    return inputs.detach().to(torch.float32) if inputs.requires_grad or inputs.dtype != torch.float32 else inputs


def plain_target(target: Any) -> Any:
    """A target as the losses of torch take it: whole numbers int64, others float32; anything else is left as it is."""
    if isinstance(target, (np.ndarray, np.generic)):
        target = torch.from_numpy(np.array(target))
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
    if not values.is_floating_point() or bool(values.isfinite().all()):
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
    """A tensor's type and shape, or the type of anything else."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else type(value).__name__
