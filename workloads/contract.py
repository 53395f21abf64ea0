"""What one sample cannot show of a workload: that its model answers the same twice, alone and in a batch, by one path, and
that its data are numbers and classes throughout.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning, _get_trace_graph
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from ..core.batch import (
    Batch,
    described,
    device_of,
    joined,
    largest_difference,
    mapped,
    moved,
    repeated,
    rows,
    shapes_of,
    stacked,
    taken,
    tensors_of,
)
from ..core.errors import WorkloadError
from ..core.interrupts import raise_if_interrupted
from .copies import copied
from .samples import class_range, flaw_of
from .workload import SPLITS, Workload, describe, number_of_classes

ASKED = 4
"""The number of validation samples that the model is run on."""

PATHS_ASKED = 32
"""The number of samples that a model is run on whose forward reads numbers out of tensors, to see whether it branches on them."""

REPEATED = 1e-4
"""The largest difference, relative to the largest output, of a model from itself on the same input."""

BATCHED = 1e-2
"""The largest difference, relative to the largest output, of a sample's answer alone from that in a batch: kernels differ."""

SCAN_SECONDS = 10.0
"""The longest time in seconds spent on checking samples before a search; each is checked again when it is used."""

_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
"""Operations whose result is a Python number: item(), bool(), int(), float(), torch.equal."""


def held(workload: Workload, seconds: float = SCAN_SECONDS) -> Workload:
    """A loaded workload whose model and data satisfy what a search relies on; neither is changed.

    Args:
        seconds: the longest to look at samples that are not plain tensors.

    Returns:
        the workload, with remarks on what is valid but surprising.

    Raises:
        WorkloadError: in one line, what is wrong and what would be right.
    """
    try:
        if not any(True for _ in workload.model.parameters()):
            raise WorkloadError("model has no parameters: there is nothing in it to compress")
        remarks = [*_scan(workload, seconds), *_try(copied(workload.model).eval(), workload)]
    except WorkloadError as error:
        name = f"workload {workload.name}: " if workload.name else ""
        raise WorkloadError(f"{name}{error}") from error.__cause__
    return replace(workload, remarks=(*workload.remarks, *remarks))


def few_inputs(workload: Workload) -> Batch:
    """Inputs of a few samples of the validation split, shape [n, ...], where the model is."""
    return moved(stacked(_asked(workload, ASKED)), device_of(workload.example_input))


# The model


@torch.no_grad()
def _try(model: nn.Module, workload: Workload) -> list[str]:
    """Run the model on a few samples, in evaluation mode."""
    inputs = few_inputs(workload)
    with torch.random.fork_rng():
        alone = _alone(model, inputs)
        _require_the_same_twice(model, inputs, alone)
        _require_one_path(model, workload)
        return [*_batch_remarks(model, inputs, alone)]


def _asked(workload: Workload, count: int) -> list[Batch]:
    """Inputs of the validation split, evenly spread."""
    data = workload.validation
    count = min(count, len(data))
    return [data[index * len(data) // count][0] for index in range(count)]


def _alone(model: nn.Module, inputs: Batch) -> Batch:
    """Outputs [n, ...] of inputs [n, ...], each in a batch of its own."""
    outputs = joined([model(taken(inputs, slice(index, index + 1))) for index in range(rows(inputs))])
    if (problem := next(filter(None, map(flaw_of, tensors_of(outputs))), None)) is not None:
        raise WorkloadError(f"the model's output on a sample of validation {problem.partition(';')[0]}")
    return outputs


def _require_the_same_twice(model: nn.Module, inputs: Batch, first: Batch) -> None:
    torch.manual_seed(1)
    second = _alone(model, inputs)
    if (difference := largest_difference(first, second)) <= REPEATED:
        return
    torch.manual_seed(1)
    cause = "it changes a state of its own in forward, or draws numbers from random or numpy"
    if largest_difference(second, _alone(model, inputs)) <= REPEATED:
        cause = "it draws random numbers in evaluation mode, such as F.dropout without training=self.training, or torch.rand"
    raise WorkloadError(f"model answers differently on the same input (by {difference:.2g} of its largest): {cause}")


def _batch_remarks(model: nn.Module, inputs: Batch, alone: Batch) -> Iterator[str]:
    """Remarks on a model whose answer on a sample depends on its batch; refused where the cause is not known."""
    if rows(inputs) == 1:
        inputs, alone = repeated(inputs, 2), repeated(alone, 2)
    count = rows(inputs)
    try:
        together: Batch = model(inputs)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"model runs on one sample and not on a batch of {count}: {describe(error)}") from error
    if shapes_of(together) != shapes_of(alone):
        raise WorkloadError(
            f"model must return one row a sample: a batch of {count} gives {described(together)}, not {described(alone)}"
        )
    if (difference := largest_difference(alone, together)) <= BATCHED:
        return
    dependence = f"the answer on a sample depends on the rest of its batch (by {difference:.2g} of the largest)"
    norms = [name for name, module in model.named_modules() if _is_of_batch(module)]
    if not norms:
        raise WorkloadError(f"model: {dependence}; what is scored in batches would not be what runs alone")
    yield (
        f"{', '.join(norms)}: batch-norm without running statistics, so that {dependence}; accuracies are those at the target's "
        "batch size, which training and calibration in larger batches do not see"
    )


def _is_of_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _require_one_path(model: nn.Module, workload: Workload) -> None:
    """Refuse a forward that branches on the values of its input: an artifact would contain one branch only."""
    example = workload.example_input
    if not _reads(model, example):
        return
    # What an exporter sees counts: models may look at values where they run, and not where they are traced.
    expected = _reads_traced(model, example)
    if not expected:
        return
    noise = [mapped(partial(_noise, scale), example) for scale in (0, 1, 10)]
    asked = [moved(stacked([sample]), device_of(example)) for sample in _asked(workload, PATHS_ASKED)]
    for inputs in [*asked, *noise]:
        pairs = zip_longest(expected, _reads_traced(model, inputs))
        if (differing := next((ours or expected[-1] for ours, other in pairs if ours != other), None)) is not None:
            where, value = differing
            raise WorkloadError(
                f"model decides by its data: forward reads a number out of a tensor at {where} ({value} on example_inputs, "
                "another on other inputs), and an artifact holds one path only; use tensor operations (torch.where) there"
            )


def _noise(scale: float, like: Tensor) -> Tensor:
    """Random numbers in place of an input's; integers, which may count or name things, stay as they are."""
    return scale * torch.randn_like(like) if like.is_floating_point() else like


def _reads(model: nn.Module, inputs: Batch) -> list[tuple[str, Any]]:
    """(place in the code, value) of every number that forward reads out of a tensor, in order."""
    with _Watch() as watch:
        model(inputs)
    return watch.reads


def _reads_traced(model: nn.Module, inputs: Batch) -> list[tuple[str, Any]]:
    """`_reads` of the pass that an exporter traces."""
    with warnings.catch_warnings(), _Watch() as watch:
        warnings.simplefilter("ignore", TracerWarning)  # of the very reads that are looked for
        _get_trace_graph(model, (inputs,))
    return watch.reads


class _Watch(TorchDispatchMode):
    """Records every Python number that is read out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _READS:
            self.reads.append((_place(), result))
        return result


def _place() -> str:
    """File and line of the innermost code that is neither torch's nor this module's."""
    library = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith((library, __file__, "<"))]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


# The data


def _scan(workload: Workload, seconds: float) -> Iterator[str]:
    """Check all samples, or in random order as many as the time allows; remarks on what was left out."""
    classes = number_of_classes(workload)
    for number, split in enumerate(SPLITS):
        data: Any = getattr(workload, split)
        begun = time.monotonic()
        if type(data) is TensorDataset:
            inputs, targets = data.tensors
            _require_sound(workload, split, inputs, targets, classes)
            continue
        share = seconds / (len(SPLITS) - number)  # what a split leaves over is the next ones'
        seen = _look(workload, split, data, begun + share)
        seconds -= time.monotonic() - begun
        if seen < len(data):
            yield (
                f"{seen:,} of {len(data):,} samples of {split} were looked at in {share:.1f} s; "
                "the others are as they are used"
            )


def _look(workload: Workload, split: str, data: Any, until: float) -> int:
    """The number of samples read before the time was over; a sample that breaks the contract raises."""
    for seen, index in enumerate(torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()):
        if time.monotonic() > until:
            return seen
        _, target = data[index]
        if isinstance(target, Tensor) and (problem := flaw_of(target)) and not _is_meant(workload, data[index]):
            raise WorkloadError(f"{split}[{index}]'s target {problem}")
    return len(data)


def _require_sound(workload: Workload, split: str, inputs: Tensor, targets: Tensor, classes: int | None) -> None:
    """`_look` at plain tensors, all at once."""
    for index in _not_finite(inputs):
        raise WorkloadError(f"{split}[{index}]'s input {flaw_of(inputs[index])}")
    for index in _not_finite(targets):
        if not _is_meant(workload, (inputs[index], targets[index])):
            raise WorkloadError(f"{split}[{index}]'s target {flaw_of(targets[index])}")
    if classes is not None:
        wrong = targets.is_floating_point() or targets.ndim != 1
        outside = torch.zeros(1) if wrong else ((targets < 0) | (targets >= classes)).nonzero()
        for index in outside.flatten()[:1].tolist():
            raise WorkloadError(f"{split}[{int(index)}]'s target {class_range(classes)}, not {targets[int(index)]}")


def _not_finite(values: Tensor) -> list[int]:
    """Indices of the rows that contain NaN or an infinity."""
    if not values.is_floating_point():
        return []
    return (
        (~values.isfinite().flatten(1).all(1) if values.ndim > 1 else ~values.isfinite()).nonzero().flatten().tolist()
    )


@torch.no_grad()
def _is_meant(workload: Workload, pair: tuple[Batch, Tensor]) -> bool:
    """Whether the workload's own loss accepts targets that are not finite, as a loss that ignores missing labels does."""
    if workload.loss is None:
        return False
    device = device_of(workload.example_input)
    outputs = copied(workload.model).eval()(moved(stacked([pair[0]]), device))
    return bool(workload.loss(outputs, pair[1][None].to(device)).isfinite().all())
