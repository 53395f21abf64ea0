"""What a search needs to know of a user's task: the model, its data and how it is scored."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import WorkloadError, describe_exception, printable
from ..interrupts import raise_if_interrupted


class MapDataset(Protocol):
    """A map-style data set of (input, target) pairs, such as `torch.utils.data.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, ...]: ...


MetricFunction = Callable[[Tensor, Tensor], float]
"""(outputs [n, ...], targets [n, ...]) -> score, higher is better."""

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs [b, ...], targets [b, ...]) -> scalar loss."""

TOP_K = {"top1": 1, "top5": 5}
"""Metrics known by name: the fraction of samples whose class is among this many highest outputs."""

SPLITS = ("train", "calibration", "validation", "test")


@dataclass(frozen=True)
class Workload:
    """A trained model, its data and its metric.

    Attributes:
        model: trained, returns one tensor; slimfront copies it before changing anything.
        train: recovery is trained on this and nothing else.
        calibration: quantization ranges and batch-norm statistics come from this.
        validation: the search's accuracy is measured on this.
        test: scored once, at the end of a search and on export.
        example_input: one batch of one sample, shape [1, ...]; fixes shapes for tracing.
        metric: "top1", "top5", or a function of (outputs, targets), higher is better.
        loss: training loss; None is cross-entropy.
        name: how reports call it; filled in by the loader.
        base: the folder that relative paths beside this workload's start from; filled in by the loader, None is the current one.
    """

    model: nn.Module
    train: MapDataset
    calibration: MapDataset
    validation: MapDataset
    test: MapDataset
    example_input: Tensor
    metric: str | MetricFunction = "top1"
    loss: LossFunction | None = None
    name: str = ""
    base: Path | None = None

    @property
    def loss_function(self) -> LossFunction:
        """The training loss, cross-entropy unless the workload brings its own."""
        return self.loss or torch.nn.functional.cross_entropy

    def check(self) -> None:
        """Hold the workload against its contract: run the model on the example, look at one sample of each split.

        Raises:
            WorkloadError: in one line, what is wrong and what would be right.
        """
        _require(isinstance(self.model, nn.Module), f"model must be a torch.nn.Module, not {_kind(self.model)}")
        _check_metric(self.metric)
        _require(self.loss is None or callable(self.loss), f"loss must be None or a function, not {_kind(self.loss)}")
        outputs = _example_outputs(self.model, self.example_input)
        classes = None
        if isinstance(self.metric, str):
            classes = _number_of_classes(outputs, self.metric)
        for split in SPLITS:
            _check_split(split, getattr(self, split), self.example_input, classes)


def describe(error: BaseException) -> str:
    """An exception's type and message as one line of at most 300 characters."""
    return printable(describe_exception(error), 300)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise WorkloadError(problem)


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_metric(metric: Any) -> None:
    if isinstance(metric, str):
        known = " or ".join(repr(name) for name in TOP_K)
        _require(metric in TOP_K, f"metric must be {known} or a function, not {metric!r}")
    else:
        _require(callable(metric), f"metric must be a name or a function of (outputs, targets), not {_kind(metric)}")


def _example_outputs(model: nn.Module, example: Any) -> Tensor:
    """What a copy of the model in evaluation mode makes of the example, which has to be a batch of one: one tensor."""
    _require(isinstance(example, Tensor), f"example_input must be a tensor, not {_kind(example)}")
    one_sample = example.ndim > 0 and len(example) == 1
    _require(one_sample, f"example_input must be a batch of one sample, shape [1, ...], not {_kind(example)}")
    try:
        # A copy, because evaluation mode is the caller's to choose, and because compression copies the model too.
        with torch.inference_mode():
            outputs = copy.deepcopy(model).eval()(example)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"model does not run on example_input {_kind(example)}: {describe(error)}") from error
    _require(isinstance(outputs, Tensor), f"model must return one tensor, the one that is scored, not {_kind(outputs)}")
    return outputs


def _number_of_classes(outputs: Tensor, metric: str) -> int:
    logits = outputs.ndim == 2 and len(outputs) == 1
    _require(logits, f"metric {metric!r} needs a model that returns logits [1, classes], not {_kind(outputs)}")
    classes, wanted = outputs.shape[1], TOP_K[metric]
    _require(classes >= wanted, f"metric {metric!r} needs at least {wanted} classes; the model has {classes}")
    return classes


def _check_split(split: str, dataset: Any, example: Tensor, classes: int | None) -> None:
    map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    _require(map_style, f"{split} must be a map-style data set with a length, not {_kind(dataset)}")
    _require(len(dataset) > 0, f"{split} is empty; it must hold at least one (input, target) pair")
    try:
        item = dataset[0]
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"{split}[0] cannot be read: {describe(error)}") from error
    pair = isinstance(item, (tuple, list)) and len(item) == 2
    _require(pair, f"{split}[0] must be an (input, target) pair, not {_kind(item)}")
    inputs, target = item
    expected = _kind(example[0])
    _require(
        _kind(inputs) == expected, f"{split}[0]'s input must be like example_input[0], {expected}, not {_kind(inputs)}"
    )
    if classes is not None:
        right = f"must be a class from 0 to {classes - 1}, the model's outputs"
        _require(_is_class(target, classes), f"{split}[0]'s target {right}, not {target!r}")


def _is_class(target: Any, classes: int) -> bool:
    try:
        return getattr(target, "ndim", 0) == 0 and 0 <= operator.index(target) < classes
    except TypeError:  # not a whole number
        return False
