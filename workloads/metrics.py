"""The metric of a workload: one of these names, a function of outputs and targets, or a `torchmetrics.Metric`.

| name | what it is | outputs, targets |
|---|---|---|
| top1, top5 | share of samples whose class is among the 1 or 5 highest logits | [n, classes], class |
| f1 | mean over classes of the harmonic mean of precision and recall | [n, classes], class |
| auroc | area under the ROC curve, mean over classes or labels | [n, classes], class; one logit, 0 or 1; [n, labels], as many 0 or 1 |
| mse, mae | mean squared and mean absolute error | values, as many values |
| r2 | share of the targets' variance that is explained, mean over outputs | values, as many values |
| pearson, spearman | correlation of outputs with targets, or of their ranks, mean over outputs | values, as many values |
| pixel_accuracy | share of positions whose class is the highest logit | [n, classes, ...], class of each position |
| miou | intersection over union of all positions, mean over classes | [n, classes, ...], class of each position |
| perplexity | exp of the mean cross-entropy of tokens | [n, tokens, classes], class of each token |
| token_accuracy | share of tokens whose class is the highest logit | [n, tokens, classes], class of each token |

A position or token of class -100 is not counted, and none of 255 where there are fewer classes. Each is computed by torchmetrics, but top1
and top5, whose hits are counted one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.metrics import Quality

Reads = Literal["classes", "scores", "values", "positions", "tokens"]
"""How a metric reads outputs: logits of one class a sample; those, of one label or of several; values; logits of a class at each
position, along axis 1, or at each token, along the last axis."""

TOP_K = {"top1": 1, "top5": 5}
"""The metrics that count hits, and how many of the highest outputs may contain a sample's class for it to count."""

IGNORED = -100
"""The class of a position that is not counted, as in torch's cross-entropy."""

ALSO_IGNORED = 255
"""Another such class, usual in maps of bytes, where there are fewer classes."""

SHARE = 0.1
"""Of the uncompressed model's value: a loss of so much is worth nothing, of a metric that has no natural scale."""


@dataclass(frozen=True)
class NamedMetric:
    """A metric that a workload may name.

    Attributes:
        unit: of its values.
        reads: what outputs and targets it takes.
        margin: a loss of so much is worth nothing, in the unit; None for `share` of the uncompressed model's value.
    """

    unit: str
    reads: Reads
    higher_is_better: bool = True
    margin: float | None = 0.1
    share: float = SHARE

    @property
    def class_axis(self) -> int | None:
        """The axis that classes are along; None of values."""
        return {"values": None, "tokens": -1}.get(self.reads, 1)

    @property
    def is_read_by_cross_entropy(self) -> bool:
        """Whether outputs are logits whose classes are along axis 1."""
        return self.reads in ("classes", "positions")


METRIC_NAMES: dict[str, NamedMetric] = {
    "top1": NamedMetric("fraction", "classes"),
    "top5": NamedMetric("fraction", "classes"),
    "f1": NamedMetric("fraction", "classes"),
    "auroc": NamedMetric("fraction", "scores"),
    "mse": NamedMetric("squared units", "values", higher_is_better=False, margin=None, share=0.5),
    "mae": NamedMetric("units of target", "values", higher_is_better=False, margin=None, share=0.2),
    "r2": NamedMetric("fraction", "values"),
    "pearson": NamedMetric("correlation", "values"),
    "spearman": NamedMetric("correlation", "values"),
    "pixel_accuracy": NamedMetric("fraction", "positions"),
    "miou": NamedMetric("fraction", "positions"),
    "perplexity": NamedMetric("perplexity", "tokens", higher_is_better=False, margin=None),
    "token_accuracy": NamedMetric("fraction", "tokens"),
}
"""Name -> what it means; `named_metrics` computes them."""


def flaw_of_metric(metric: Any) -> str | None:
    """Why something is no metric of a workload, as a clause after "metric"; None where it is one."""
    if isinstance(metric, str):
        known = ", ".join(METRIC_NAMES)
        return (
            None
            if metric in METRIC_NAMES
            else f"must be one of {known}, a function, or a torchmetrics.Metric, not {metric!r}"
        )
    if is_torchmetric(metric):
        if getattr(metric, "higher_is_better", None) is None:
            return f"{type(metric).__name__} does not say which way is better; set higher_is_better in a subclass of it"
        return None
    if isinstance(metric, nn.Module) or not callable(metric):
        return f"must be a name, a function of (outputs, targets) or a torchmetrics.Metric, not {type(metric).__name__}"
    return None


def is_torchmetric(metric: object) -> bool:
    """Whether it is a `torchmetrics.Metric`; the library, which takes seconds to import, is not imported for that."""
    library = sys.modules.get("torchmetrics")
    return library is not None and isinstance(metric, library.Metric)


def named(metric: object) -> NamedMetric | None:
    """The entry of a metric given by its name; None of a function or a `torchmetrics.Metric`."""
    return METRIC_NAMES[metric] if isinstance(metric, str) else None


def is_higher_better(metric: object) -> bool:
    """Which way is better; of a function that does not say, higher.

    A function may say it as `torchmetrics.Metric` does, by an attribute `higher_is_better`.
    """
    entry = named(metric)
    return bool(entry.higher_is_better if entry is not None else getattr(metric, "higher_is_better", True))


def quality_of(metric: object, value: float) -> Quality:
    """What `accuracy` means where this is the workload's metric, and `value` what the uncompressed model has.

    A function or a `torchmetrics.Metric` may say its unit by an attribute `unit`.
    """
    entry = named(metric)
    share = SHARE if entry is None else entry.share
    margin = entry.margin if entry is not None else None
    if margin is None:
        margin = share * abs(value) or SHARE
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    unit = entry.unit if entry is not None else str(getattr(metric, "unit", "score"))
    return Quality(str(name), unit, is_higher_better(metric), margin)


def misfit(metric: str, outputs: Tensor, target: Any = None) -> str | None:
    """Why a model's outputs [1, ...] are not what a metric reads, or a sample's target is not; None where they fit."""
    target = None if target is None else torch.as_tensor(target)
    return _MISFITS[METRIC_NAMES[metric].reads](outputs, target, TOP_K.get(metric, 1))


def _misfit_of_classes(outputs: Tensor, target: Tensor | None, wanted: int) -> str | None:
    if outputs.ndim != 2:
        return "needs a model that returns logits [1, classes]"
    if outputs.shape[1] < (least := max(2, wanted)):
        hint = "; one logit takes auroc, or a metric and a loss of its own" if outputs.shape[1] == 1 else ""
        return f"needs at least {least} classes; the model has {outputs.shape[1]}{hint}"
    return None if target is None else _misfit_of_each(target, outputs.shape[1], [], False)


def _misfit_of_scores(outputs: Tensor, target: Tensor | None, wanted: int) -> str | None:
    if outputs.ndim > 2:
        return "needs a model that returns logits [1, classes], [1, labels] or one logit"
    if target is None:
        return None
    if outputs.numel() > 1 and target.numel() == 1:
        return _misfit_of_classes(outputs, target, wanted)
    if target.numel() != outputs.numel() or not bool(((target == 0) | (target == 1)).all()):
        return f"needs targets of {outputs.numel()} labels, each 0 or 1; this is {list(target.shape)}"
    return None


def _misfit_of_values(outputs: Tensor, target: Tensor | None, _wanted: int) -> str | None:
    if target is None or target.numel() == outputs.numel():
        return None
    return f"needs as many target values as outputs, {outputs.numel()}; this has {target.numel()}"


def _misfit_of_positions(outputs: Tensor, target: Tensor | None, _wanted: int) -> str | None:
    if outputs.ndim < 3 or outputs.shape[1] < 2:
        return "needs a model that returns logits [1, classes, ...] of at least two classes"
    return None if target is None else _misfit_of_each(target, outputs.shape[1], list(outputs.shape[2:]), True)


def _misfit_of_tokens(outputs: Tensor, target: Tensor | None, _wanted: int) -> str | None:
    if outputs.ndim != 3 or outputs.shape[2] < 2:
        return "needs a model that returns logits [1, tokens, classes] of at least two classes"
    return None if target is None else _misfit_of_each(target, outputs.shape[2], [outputs.shape[1]], True)


def _misfit_of_each(target: Tensor, classes: int, shape: list[int], may_ignore: bool) -> str | None:
    whole = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    if not whole or list(target.shape) != shape:
        return f"needs a target of whole numbers of shape {shape}; this is {target.dtype} {list(target.shape)}"
    counted = target[is_counted(target, classes)] if may_ignore else target
    if bool(((counted < 0) | (counted >= classes)).any()):
        wrong = counted[(counted < 0) | (counted >= classes)].flatten()[0]
        return f"needs classes from 0 to {classes - 1}, the model's outputs{f', or {IGNORED}' if may_ignore else ''}; this has {wrong}"
    return None


_MISFITS: dict[Reads, Callable[[Tensor, Tensor | None, int], str | None]] = {
    "classes": _misfit_of_classes,
    "scores": _misfit_of_scores,
    "values": _misfit_of_values,
    "positions": _misfit_of_positions,
    "tokens": _misfit_of_tokens,
}


def is_counted(targets: Tensor, classes: int) -> Tensor:
    """Where targets are classes that count."""
    counted = targets != IGNORED
    return counted & (targets != ALSO_IGNORED) if classes <= ALSO_IGNORED else counted


def default_loss(metric: object) -> Callable[[Tensor, Tensor], Tensor]:
    """The training loss of a workload with this metric that brings none; cross-entropy where nothing says otherwise."""
    entry = named(metric)
    return _LOSSES.get(entry.reads, functional.cross_entropy) if entry is not None else functional.cross_entropy


def _loss_of_scores(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.numel() != targets.numel():
        return functional.cross_entropy(outputs, targets)
    return functional.binary_cross_entropy_with_logits(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


def _loss_of_values(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(
        outputs, targets.reshape(outputs.shape).to(outputs.dtype)
    )  # [n, 1] and [n] would broadcast


def _loss_of_positions(outputs: Tensor, targets: Tensor) -> Tensor:
    counted = is_counted(targets, outputs.shape[1])
    return functional.cross_entropy(outputs, targets.where(counted, IGNORED), ignore_index=IGNORED)


def _loss_of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return _loss_of_positions(outputs.movedim(-1, 1), targets)


_LOSSES: dict[Reads, Callable[[Tensor, Tensor], Tensor]] = {
    "scores": _loss_of_scores,
    "values": _loss_of_values,
    "positions": _loss_of_positions,
    "tokens": _loss_of_tokens,
}
