"""What a search needs to know of a user's task: the model, its data and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..core.errors import WorkloadError
from ..core.interrupts import raise_if_interrupted
from .copies import copied, unwrapped
from .metrics import METRIC_NAMES, default_loss, flaw_of_metric, misfit
from .output_kind import OutputKind
from .samples import MapDataset, class_range, describe, flaw_of, is_class, kind_of, read_pair

if TYPE_CHECKING:
    from torchmetrics import Metric

MetricFunction = Callable[[Any, Any], float]
"""(outputs [n, ...], targets [n, ...]) -> score; of a model of several outputs or targets, structures of such tensors."""

LossFunction = Callable[[Any, Any], Tensor]
"""(outputs [b, ...], targets [b, ...]) -> scalar loss."""

QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
"""The packages of layers that are quantized already."""

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
        metric: a name of `METRIC_NAMES`, a `torchmetrics.Metric`, or a function of all (outputs, targets), higher is better unless it
            has an attribute `higher_is_better`.
        loss: training loss; None is what the metric reads best: squared error of values, else cross-entropy.
        name: how reports call it; filled in by the loader.
        base: the folder to which a study's other relative paths refer; filled in by the loader, None is the current one.
        remarks: what the loader changed, each a line for the workload's owner; filled in by the loader.
        output_kinds: of outputs, by their names ("" where the model returns one tensor), what they mean where that is not seen by
            itself, for the damage and for distillation.
    """

    model: nn.Module
    train: MapDataset
    calibration: MapDataset
    validation: MapDataset
    test: MapDataset
    example_input: Tensor
    metric: str | MetricFunction | Metric = "top1"
    loss: LossFunction | None = None
    name: str = ""
    base: Path | None = None
    remarks: tuple[str, ...] = ()
    output_kinds: Mapping[str, OutputKind] = field(default_factory=dict)

    @property
    def loss_function(self) -> LossFunction:
        """The training loss: the workload's own, or the one that belongs to its metric."""
        return self.loss or default_loss(self.metric)

    def check(self) -> None:
        """Check the workload against its contract: run the model on the example, look at one sample of each split.

        Raises:
            WorkloadError: in one line, what is wrong and what would be right.
        """
        _check_model(self.model)
        problem = flaw_of_metric(self.metric)
        _require(problem is None, f"metric {problem}")
        _require(self.loss is None or callable(self.loss), f"loss must be None or a function, not {kind_of(self.loss)}")
        outputs = _example_outputs(unwrapped(self.model), self.example_input)
        if isinstance(self.metric, str):
            _require_fit(self.metric, outputs)
        for split in SPLITS:
            _check_split(split, getattr(self, split), self.example_input)
            self._check_target(split, outputs)

    def _check_target(self, split: str, outputs: Tensor) -> None:
        """Hold the first target of a split against what the metric reads."""
        if not isinstance(self.metric, str):
            return
        target, classes = read_pair(getattr(self, split), 0, f"{split}[0]")[1], _classes_of(outputs, self.metric)
        if classes is not None:
            _require(is_class(target, classes), f"{split}[0]'s target {class_range(classes)}, not {target!r}")
        problem = misfit(self.metric, outputs, target)
        _require(problem is None, f"{split}[0]'s target does not fit: metric {self.metric!r} {problem}")


def number_of_classes(workload: Workload) -> int | None:
    """The model's classes, where a sample's target has to be one of them; None elsewhere."""
    if not isinstance(workload.metric, str):
        return None
    return _classes_of(_example_outputs(unwrapped(workload.model), workload.example_input), workload.metric)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise WorkloadError(problem)


def _check_model(model: Any) -> None:
    """Require a model whose weights are present and can be changed."""
    _require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, not {kind_of(model)}")
    scripted = isinstance(model, torch.jit.ScriptModule)
    _require(
        not scripted, "model is compiled by TorchScript, which hides its layers; give the nn.Module it was made of"
    )
    for name, module in model.named_modules():
        quantized = type(module).__module__.startswith(QUANTIZED)
        _require(not quantized, f"{name or 'the model'} is quantized already; give the model before quantization")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        lazy = nn.parameter.is_lazy(tensor)
        _require(not lazy, f"{name} has no shape yet; run a batch through the model, and train it, before")
        _require(not tensor.is_meta, f"{name} is on the meta device and has no values; load the trained weights")
        problem = flaw_of(tensor)
        _require(problem is None, f"{name} {str(problem).partition(';')[0]}; load the trained weights")


def _example_outputs(model: nn.Module, example: Any) -> Tensor:
    """The model's output in evaluation mode on the example, which must be a batch of one: a tensor of one row."""
    _require(isinstance(example, Tensor), f"example_input must be a tensor, not {kind_of(example)}")
    one_sample = example.ndim > 0 and len(example) == 1
    _require(one_sample, f"example_input must be a batch of one sample, shape [1, ...], not {kind_of(example)}")
    problem = flaw_of(example)
    _require(problem is None, f"example_input {problem}")
    try:
        # A copy, because evaluation mode is the caller's to choose, and because compression copies the model too.
        own = copied(model)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"model cannot be copied (copy.deepcopy): {describe(error)}") from error
    try:
        with torch.inference_mode():
            outputs = own.eval()(example)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        kinds = {str(weight.dtype) for weight in model.parameters() if weight.dtype != example.dtype}
        hint = f"; its weights are {', '.join(sorted(kinds))}" if kinds and example.is_floating_point() else ""
        raise WorkloadError(
            f"model does not run on example_input {kind_of(example)}: {describe(error)}{hint}"
        ) from error
    _require(
        isinstance(outputs, Tensor), f"model must return one tensor, the one that is scored, not {kind_of(outputs)}"
    )
    _require(outputs.is_floating_point(), f"model must return real floats, not {kind_of(outputs)}")
    one_row = outputs.ndim > 0 and len(outputs) == 1
    hint = "; a squeeze() in forward needs its dimension" if outputs.ndim == 0 else ""
    _require(one_row, f"model must return one row a sample, [1, ...] of example_input, not {kind_of(outputs)}{hint}")
    problem = flaw_of(outputs)
    _require(problem is None, f"model's output on example_input {str(problem).partition(';')[0]}")
    return outputs


def _require_fit(metric: str, outputs: Tensor) -> None:
    problem = misfit(metric, outputs)
    _require(problem is None, f"metric {metric!r} {problem}, not {kind_of(outputs)}")


def _classes_of(outputs: Tensor, metric: str) -> int | None:
    """The classes that one target a sample is among; None where a metric reads something else."""
    return outputs.shape[1] if METRIC_NAMES[metric].reads == "classes" else None


def _check_split(split: str, dataset: MapDataset, example: Tensor) -> None:
    map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    hint = "; its .dataset is one" if type(dataset) is DataLoader else ""
    _require(map_style, f"{split} must be a map-style data set with a length, not {kind_of(dataset)}{hint}")
    _require(len(dataset) > 0, f"{split} is empty; it must hold at least one (input, target) pair")
    inputs, _ = read_pair(dataset, 0, f"{split}[0]")
    expected = kind_of(example[0])
    fits = kind_of(inputs) == expected
    _require(fits, f"{split}[0]'s input must be like example_input[0], {expected}, not {kind_of(inputs)}")
