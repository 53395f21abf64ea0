"""The metrics that a workload may name, made by torchmetrics. Importing this module takes seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MultilabelAUROC,
)
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.text import Perplexity
from torchmetrics.utilities import dim_zero_cat

from .metrics import IGNORED, METRIC_NAMES, Reads, is_counted

Read = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(outputs [n, ...], targets [n, ...]) -> what a metric of torchmetrics is updated with."""


def make(name: str, outputs: Tensor, targets: Tensor) -> tuple[Metric, Read]:
    """The metric called `name` for outputs and targets like these, and what reads them for it.

    A metric of several outputs computes a value for each, whose mean is meant.
    """
    # torchmetrics warns of each part of a split that lacks a class, which it leaves out, and of metrics that keep what they need.
    for expected in (".*(positive|negative) samples in targets", ".*will save all targets and predictions"):
        warnings.filterwarnings("ignore", message=expected, category=UserWarning)
    metric = _MAKERS[name](outputs, targets)
    return metric.set_dtype(torch.float64), _logits if name == "perplexity" else _READERS[METRIC_NAMES[name].reads]


class _Pearson(Metric):
    """Pearson's correlation of each output. torchmetrics' own keeps sums that take long to merge; this keeps the values."""

    preds: list[Tensor]
    target: list[Tensor]
    higher_is_better = True
    is_differentiable = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.preds.append(preds)
        self.target.append(target)

    def compute(self) -> Tensor:
        return pearson_corrcoef(dim_zero_cat(self.preds), dim_zero_cat(self.target))


def _auroc(outputs: Tensor, targets: Tensor) -> Metric:
    if outputs.numel() != targets.numel():
        return MulticlassAUROC(outputs.shape[1], validate_args=False)
    labels = outputs[0].numel()
    return BinaryAUROC(validate_args=False) if labels == 1 else MultilabelAUROC(labels, validate_args=False)


def _accuracy(axis: int) -> Callable[[Tensor, Tensor], Metric]:
    return lambda outputs, _: MulticlassAccuracy(outputs.shape[axis], average="micro", validate_args=False)


_MAKERS: dict[str, Callable[[Tensor, Tensor], Metric]] = {
    "f1": lambda outputs, _: MulticlassF1Score(outputs.shape[1], average="macro", validate_args=False),
    "auroc": _auroc,
    "mse": lambda *_: MeanSquaredError(),
    "mae": lambda *_: MeanAbsoluteError(),
    "r2": lambda *_: R2Score(),
    "pearson": lambda *_: _Pearson(),
    "spearman": lambda outputs, _: SpearmanCorrCoef(num_outputs=_channels(outputs)),
    "pixel_accuracy": _accuracy(1),
    "miou": lambda outputs, _: MulticlassJaccardIndex(outputs.shape[1], average="macro", validate_args=False),
    "perplexity": lambda *_: Perplexity(ignore_index=IGNORED),
    "token_accuracy": _accuracy(-1),
}


def _channels(outputs: Tensor) -> int:
    """The number of values that are judged one by one: the columns of [n, k]; a map is one series."""
    return outputs.shape[1] if outputs.ndim == 2 else 1


def _classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.argmax(1), targets.reshape(len(outputs))


def _scores(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities: torchmetrics itself makes them batch by batch, of those batches that do not look like them."""
    outputs = outputs.double()
    if outputs.numel() != targets.numel():
        likely = (outputs >= 0).all(1, keepdim=True) & ((outputs.sum(1, keepdim=True) - 1).abs() < 1e-3)
        return torch.where(likely, outputs, outputs.softmax(1)), targets.reshape(len(outputs))
    shape = (len(outputs),) if outputs[0].numel() == 1 else (len(outputs), -1)
    return outputs.sigmoid().reshape(shape), targets.reshape(
        shape
    ).long()  # of probabilities too: the order is the same


def _values(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    shape = outputs.shape if _channels(outputs) > 1 else (-1,)
    return outputs.double().reshape(shape), targets.double().reshape(shape)


def _positions(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    classes = outputs.shape[1]
    counted = is_counted(targets, classes)
    targets = targets[counted]
    if bool(((targets < 0) | (targets >= classes)).any()):
        raise ValueError(f"a target is no class from 0 to {classes - 1}")
    return outputs.argmax(1)[counted], targets


def _token_classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return _positions(outputs.movedim(-1, 1), targets)


def _logits(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs, targets.where(is_counted(targets, outputs.shape[-1]), IGNORED)


_READERS: dict[Reads, Read] = {
    "classes": _classes,
    "scores": _scores,
    "values": _values,
    "positions": _positions,
    "tokens": _token_classes,
}
