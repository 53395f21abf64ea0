"""A batch of a model's inputs or outputs: one tensor, or several by name. The first axis of each tensor counts the samples.

Where a model takes one tensor and returns one, a batch is that tensor; else it is a dictionary. Whatever computes on batches
goes through these functions, and never asks which of the two it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map  # torch.utils.pytree is another implementation of the same, and as private

Batch = Tensor | dict[str, Tensor]
"""One tensor [n, ...], or several by name."""

INPUT, OUTPUT = "input", "output"
"""What artifacts call the only input and the only output of a model."""

HOST = torch.device("cpu")
"""The processor, from whose memory runtimes take their inputs."""


def mapped(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """The batch with `function` applied to each tensor."""
    if isinstance(batch, Tensor):
        return function(batch)
    return {name: function(tensor) for name, tensor in batch.items()}


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order."""
    return [batch] if isinstance(batch, Tensor) else [*batch.values()]


def by_name(batch: Batch, only: str) -> dict[str, Tensor]:
    """The tensors by name; `only` is the name of a single one without."""
    return {only: batch} if isinstance(batch, Tensor) else batch


def from_names(tensors: Mapping[str, Tensor], only: str) -> Batch:
    """The reverse of `by_name`."""
    return tensors[only] if tensors.keys() == {only} else dict(tensors)


def rows(batch: Batch) -> int:
    """The number of samples."""
    return len(tensors_of(batch)[0])


def taken(batch: Batch, index: slice | Tensor | np.ndarray | Sequence[int]) -> Batch:
    """The samples at `index`."""
    return mapped(lambda tensor: tensor[index], batch)


def repeated(example: Batch, count: int) -> Batch:
    """A batch of one sample as one of `count`, contiguous."""
    return mapped(lambda tensor: tensor.expand(count, *tensor.shape[1:]).contiguous(), example)


def moved(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device; where it is copied to an accelerator, the program goes on meanwhile."""
    return mapped(lambda tensor: _moved(tensor, device), batch)


def moved_target(target: Any, device: torch.device | str) -> Any:
    """A batch of targets, in whatever holds its tensors, on a device."""
    return tree_map(lambda leaf: _moved(leaf, device) if isinstance(leaf, Tensor) else leaf, target)


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    # A copy to the processor is waited for: what reads it does not know that it is under way.
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


def device_of(batch: Batch) -> torch.device:
    """Where the batch is."""
    return tensors_of(batch)[0].device


def device_of_model(model: nn.Module) -> torch.device:
    """Where a model computes: where its first parameter or buffer is, and the processor where it has none."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), HOST)


def stacked(samples: Sequence[Batch]) -> Batch:
    """A batch of samples that have no axis of samples yet."""
    return _combined(torch.stack, samples)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all samples of several."""
    return _combined(torch.cat, batches)


def _combined(function: Callable[[list[Tensor]], Tensor], parts: Sequence[Batch]) -> Batch:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if tensors:
        return function(tensors)
    names = [part for part in parts if isinstance(part, dict)]
    return {name: function([part[name] for part in names]) for name in names[0]}


def shapes_of(batch: Batch) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """(name, shape, type) of each tensor; a single one has no name."""
    named = by_name(batch, "")
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named.items()]


def sizes(batch: Batch) -> str:
    """Shapes as errors show them."""
    return ", ".join(f"{name} {list(shape)}".strip() for name, shape, _ in shapes_of(batch))


def described(batch: Batch) -> str:
    """Types and shapes as errors show them."""
    parts = [f"{name} {dtype} {list(shape)}".strip() for name, shape, dtype in shapes_of(batch)]
    return ", ".join(parts)


def largest_difference(expected: Batch, found: Batch) -> float:
    """The largest difference of a tensor from its counterpart, relative to its largest value; infinite where shapes differ."""
    if shapes_of(expected) != shapes_of(found):
        return float("inf")
    pairs = zip(tensors_of(expected), tensors_of(found), strict=True)
    gaps = [_difference(one.double(), other.double()) for one, other in pairs if one.numel()]
    return float(torch.stack(gaps).max()) if gaps else 0.0  # NaN where one is


def _difference(expected: Tensor, found: Tensor) -> Tensor:
    return (expected - found).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
