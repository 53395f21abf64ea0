"""What a search needs to know of a user's task: the model, its data and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map  # the maps of trees in torch.utils.pytree are of another kind of tree
from torch.utils.data import DataLoader, IterableDataset

from ..core.batch import Batch, tensors_of
from ..core.errors import WorkloadError
from ..core.interrupts import raise_if_interrupted
from .calls import DynamicAxes, Forward, Inputs, axes_problem, batch_of, called, names_of_inputs, picked
from .copies import copied, unwrapped
from .metrics import METRIC_NAMES, default_loss, flaw_of_metric, misfit
from .output_kind import OutputKind
from .samples import (
    Collate,
    InputKinds,
    MapDataset,
    Reading,
    Samples,
    Transform,
    class_range,
    describe,
    flaw_of,
    is_class,
    kind_of,
    tensor_of,
)

if TYPE_CHECKING:
    from torchmetrics import Metric

MetricFunction = Callable[[Any, Any], float]
"""(outputs [n, ...], targets [n, ...]) -> score; of a model of several outputs or targets, structures of such tensors."""

LossFunction = Callable[[Any, Any], Tensor]
"""(outputs [b, ...], targets [b, ...]) -> scalar loss."""

QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
"""The packages of layers that are quantized already."""

SPLITS = ("train", "calibration", "validation", "test")


T = TypeVar("T")


def _also_named(earlier: str, name: str) -> Callable[[type[T]], type[T]]:
    """Have a data class take a field by an earlier name too."""

    def decorate(cls: type[T]) -> type[T]:
        made = cls.__init__

        @wraps(made)
        def init(self: T, *given: Any, **fields: Any) -> None:
            if earlier in fields:
                fields[name] = fields.pop(earlier)
            made(self, *given, **fields)

        cls.__init__ = init
        return cls

    return decorate


@_also_named("example_input", "example_inputs")
@dataclass(frozen=True)
class Workload:
    """A trained model, its data and its metric.

    Attributes:
        model: trained, returns tensors; slimfront copies it before changing anything.
        train: recovery is trained on this and nothing else.
        calibration: quantization ranges and batch-norm statistics come from this.
        validation: the search's accuracy is measured on this.
        test: scored once, at the end of a search and on export.
        example_inputs: one batch of one sample: a tensor or array [1, ...], a tuple of such or a mapping of such, of any types. The model
            is called `model(x)`, `model(*xs)` or `model(**xs)`; data sets give (inputs, target) pairs of the same structure.
            Fixes shapes for tracing. Also taken as `example_input`.
        metric: a name of `METRIC_NAMES`, a `torchmetrics.Metric`, or a function of all (outputs, targets), higher is better unless it
            has an attribute `higher_is_better`.
        loss: training loss; None is what the metric reads best: squared error of values, else cross-entropy.
        forward: (model, inputs as the data sets give them) -> outputs, for a model that is called in another way.
        outputs: names of the outputs that artifacts return, such as "logits": keys or fields of what the model returns, and
            "output0", "output1" for positions; all of its tensors where there are none.
        dynamic_axes: input -> axis -> a name for its size, as in `{"input_ids": {1: "sequence"}}`, of the axes that may have other sizes
            than in the example ("input" is a model's only one): artifacts take any size there, on runtimes that can.
        name: how reports call it; filled in by the loader.
        base: the folder to which a study's other relative paths refer; filled in by the loader, None is the current one.
        remarks: what the loader changed, each a line for the workload's owner; filled in by the loader.
        output_kinds: of outputs, by their names ("" where the model returns one tensor), what they mean where that is not seen by
            itself, for the damage and for distillation.
        collate: makes a batch (inputs, targets) of a list of the pairs that the data sets give; None stacks them as torch does.
        train_transform: applied to the input of each training sample as it is read, such as augmentation; a data set that
            augments its samples itself needs none.
    """

    model: nn.Module
    train: MapDataset
    calibration: MapDataset
    validation: MapDataset
    test: MapDataset
    example_inputs: Inputs
    metric: str | MetricFunction | Metric = "top1"
    loss: LossFunction | None = None
    forward: Forward | None = None
    outputs: Sequence[str] = ()
    dynamic_axes: DynamicAxes = field(default_factory=dict)
    name: str = ""
    base: Path | None = None
    remarks: tuple[str, ...] = ()
    output_kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    collate: Collate | None = None
    train_transform: Transform | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "example_inputs", _as_tensors(self.example_inputs))

    def reading(self, split: str) -> Reading:
        """How the samples of a split are read."""
        return Reading(self.collate, self.train_transform if split == "train" else None)

    @property
    def example_input(self) -> Batch:
        """`example_inputs` as a batch: a tensor, or tensors by name."""
        return batch_of(self.example_inputs, names_of_inputs(self.model, self.example_inputs))

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
        _check_call(self)
        outputs = _checked_outputs(self, example_result(self))
        if isinstance(self.metric, str):
            _require_fit(self.metric, outputs)
        if isinstance(outputs, dict) and self.loss is None:
            several = ", ".join(outputs)
            raise WorkloadError(f"loss must be given: cross-entropy reads one output, and there are {several}")
        for split in SPLITS:
            _check_split(split, getattr(self, split), InputKinds.of(self.example_input), self.reading(split))
            self._check_target(split, outputs)

    def _check_target(self, split: str, outputs: Batch) -> None:
        """Hold the first target of a split against what the metric reads."""
        if not isinstance(self.metric, str) or isinstance(outputs, dict):
            return
        reader = Samples(split, getattr(self, split), InputKinds.of(self.example_input), None, self.reading(split))
        target = reader[0][1] if self.collate else reader.pair(0)[1]
        classes = _classes_of(outputs, self.metric)
        if classes is not None:
            _require(is_class(target, classes), f"{split}[0]'s target {class_range(classes)}, not {target!r}")
        problem = misfit(self.metric, outputs, target)
        _require(problem is None, f"{split}[0]'s target does not fit: metric {self.metric!r} {problem}")


def number_of_classes(workload: Workload) -> int | None:
    """The model's classes, where a sample's target has to be one of them; None elsewhere."""
    if not isinstance(workload.metric, str):
        return None
    return _classes_of(picked(example_result(workload), workload.outputs), workload.metric)


def _as_tensors(example: Any) -> Any:
    """Example inputs with arrays as tensors, and any mapping, such as what a tokenizer returns, as a dictionary."""
    if isinstance(example, Mapping):
        return {name: _as_tensors(value) for name, value in example.items()}
    if type(example) in (tuple, list):
        return type(example)(map(_as_tensors, example))
    return tensor_of(example) if isinstance(example, np.ndarray) else example


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise WorkloadError(problem)


def _check_model(model: Any) -> None:
    """Require a model whose weights are present and can be changed."""
    _require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, not {kind_of(model)}")
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        hidden = "is compiled by TorchScript, which hides its layers; give the nn.Module it was made of"
        _require(not scripted, f"{name or 'model'} {hidden}")
        quantized = type(module).__module__.startswith(QUANTIZED)
        _require(not quantized, f"{name or 'the model'} is quantized already; give the model before quantization")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        lazy = nn.parameter.is_lazy(tensor)
        _require(not lazy, f"{name} has no shape yet; run a batch through the model, and train it, before")
        _require(not tensor.is_meta, f"{name} is on the meta device and has no values; load the trained weights")
        problem = flaw_of(tensor)
        _require(problem is None, f"{name} {str(problem).partition(';')[0]}; load the trained weights")


def _check_call(workload: Workload) -> None:
    """Require inputs of one sample, and names and functions where there are to be such."""
    example, forward, outputs = workload.example_inputs, workload.forward, workload.outputs
    several = isinstance(example, (tuple, list, dict)) and len(example) > 0
    _require(
        several or isinstance(example, Tensor),
        f"example_inputs must be a tensor, a tuple of tensors or a dictionary of tensors, not {kind_of(example)}",
    )
    for name, tensor in _named(example):
        where = f"example_inputs{name}"
        _require(isinstance(tensor, Tensor), f"{where} must be a tensor, not {kind_of(tensor)}")
        one_sample = tensor.ndim > 0 and len(tensor) == 1
        _require(one_sample, f"{where} must be a batch of one sample, shape [1, ...], not {kind_of(tensor)}")
        problem = flaw_of(tensor)
        _require(problem is None, f"{where} {problem}")
    problem = axes_problem(workload.dynamic_axes, workload.example_input)
    _require(problem is None, f"dynamic_axes {problem}")
    _require(forward is None or callable(forward), f"forward must be None or a function, not {kind_of(forward)}")
    named = not isinstance(outputs, str) and all(isinstance(name, str) for name in outputs)
    _require(named, f"outputs must be names, such as ['logits'], not {outputs!r}")


def _named(example: Any) -> list[tuple[str, Any]]:
    """(how errors index it, value) of each input."""
    if isinstance(example, dict):
        return [(f"[{name!r}]", value) for name, value in example.items()]
    return (
        [(f"[{i}]", each) for i, each in enumerate(example)] if isinstance(example, (tuple, list)) else [("", example)]
    )


def example_result(workload: Workload) -> Any:
    """What the model returns in evaluation mode of the example inputs, as its owner calls it.

    Raises:
        WorkloadError: it cannot be copied, or does not run.
    """
    model, example = unwrapped(workload.model), workload.example_inputs
    try:
        # A copy, because evaluation mode is the caller's to choose, and because compression copies the model too.
        own = copied(model)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"model cannot be copied (copy.deepcopy): {describe(error)}") from error
    try:
        with torch.inference_mode():
            return called(own.eval(), tree_map(_cloned, example), workload.forward)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        floats = {tensor.dtype for _, tensor in _named(example) if tensor.is_floating_point()}
        kinds = {str(weight.dtype) for weight in model.parameters() if weight.dtype not in floats}
        hint = f"; its weights are {', '.join(sorted(kinds))}" if kinds and floats else ""
        raise WorkloadError(
            f"model does not run on example_inputs {kind_of(example)}: {describe(error)}{hint}"
        ) from error


def _cloned(value: Any) -> Any:
    """A tensor's copy, which the user's forward may change; anything else itself."""
    return value.clone() if isinstance(value, Tensor) else value


def _checked_outputs(workload: Workload, result: Any) -> Batch:
    """The outputs that artifacts return, each a tensor of one row a sample."""
    outputs = picked(result, workload.outputs)
    floats = [tensor.is_floating_point() for tensor in tensors_of(outputs)]
    _require(any(floats), f"model must return real floats, not {kind_of(outputs)}")
    for name, tensor in outputs.items() if isinstance(outputs, dict) else [("", outputs)]:
        what = f"model's output {name}".strip()
        one_row = tensor.ndim > 0 and len(tensor) == 1
        hint = "; a squeeze() in forward needs its dimension" if tensor.ndim == 0 else ""
        hint = "; outputs=[...] names those to keep" if name else hint
        _require(one_row, f"{what} must have one row a sample, [1, ...] of example_inputs, not {kind_of(tensor)}{hint}")
        _require(not tensor.is_complex(), f"{what} must be of real numbers, not {kind_of(tensor)}")
        problem = flaw_of(tensor)
        _require(problem is None, f"{what} on example_inputs {str(problem).partition(';')[0]}")
    _check_names(workload.example_input, outputs)
    return outputs


def _check_names(inputs: Batch, outputs: Batch) -> None:
    """Require that no output is called like an input: both are names of one file's tensors."""
    if isinstance(inputs, dict) and isinstance(outputs, dict):
        both = ", ".join(inputs.keys() & outputs.keys())
        _require(not both, f"model returns {both}, which is the name of an input too; name it otherwise, by `forward`")


def _require_fit(metric: str, outputs: Batch) -> None:
    if not isinstance(outputs, Tensor):
        names = ", ".join(outputs)
        raise WorkloadError(
            f"metric {metric!r} needs one output, and there are {names}; outputs=['{next(iter(outputs))}'] keeps one"
        )
    problem = misfit(metric, outputs)
    _require(problem is None, f"metric {metric!r} {problem}, not {kind_of(outputs)}")


def _classes_of(outputs: Batch, metric: str) -> int | None:
    """The classes that one target a sample is among; None where a metric reads something else."""
    return outputs.shape[1] if METRIC_NAMES[metric].reads == "classes" and isinstance(outputs, Tensor) else None


def _check_split(split: str, dataset: MapDataset, kinds: InputKinds, reading: Reading) -> None:
    map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    hint = "; its .dataset is one" if type(dataset) is DataLoader else ""
    if isinstance(dataset, IterableDataset):
        map_style, hint = False, "; list(...) of it is one, where it is finite"
    _require(map_style, f"{split} must be a map-style data set with a length, not {kind_of(dataset)}{hint}")
    _require(len(dataset) > 0, f"{split} is empty; it must hold at least one (input, target) pair")
    _ = Samples(split, dataset, kinds, None, reading)[0]
