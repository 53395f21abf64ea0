"""Batches of a map-style data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from ..core.batch import INPUT, Batch, by_name, repeated
from ..workloads.workload import MapDataset

CALIBRATION_BATCH = 50
"""The number of calibration samples that are run at once."""


def loader(data: MapDataset, batch_size: int, shuffle_seed: int | None = None) -> DataLoader:
    """A DataLoader over `data`: all of it in order, or, where a seed is given, full batches shuffled reproducibly."""
    if shuffle_seed is None:
        return DataLoader(cast("Dataset", data), batch_size=batch_size)
    generator = torch.Generator().manual_seed(shuffle_seed)
    return DataLoader(
        cast("Dataset", data),
        batch_size=batch_size,
        shuffle=True,
        generator=generator,
        drop_last=_fills_a_batch(data, batch_size),
    )


def input_batches(data: MapDataset, batch_size: int) -> Iterable[Batch]:
    """Inputs of `data` in order in full batches, shape [batch_size, ...]; in one smaller batch where there are fewer. May be
    iterated several times."""
    return _InputBatches(
        DataLoader(cast("Dataset", data), batch_size=batch_size, drop_last=_fills_a_batch(data, batch_size))
    )


@dataclass(frozen=True)
class _InputBatches(Iterable[Batch]):
    loader: DataLoader

    def __iter__(self) -> Iterator[Batch]:
        return (inputs for inputs, _ in self.loader)


def subset(data: MapDataset, indices: Sequence[int]) -> MapDataset:
    """The samples of `data` at `indices`."""
    return cast("MapDataset", Subset(cast("Dataset", data), indices))


def _fills_a_batch(data: MapDataset, batch_size: int) -> bool:
    """Whether a short last batch can be dropped, because its statistics would count as much as those of a full one."""
    return len(data) >= batch_size


def example_arrays(example_input: Batch, batch: int) -> dict[str, np.ndarray]:
    """The example inputs, each [1, ...], repeated to [batch, ...] for a runtime."""
    return arrays_of(repeated(example_input, batch))


def arrays_of(inputs: Batch) -> dict[str, np.ndarray]:
    """A batch of inputs as a runtime takes it."""
    return {name: tensor.cpu().numpy() for name, tensor in by_name(inputs, INPUT).items()}


def outputs_of(arrays: Mapping[str, np.ndarray]) -> Batch:
    """What a runtime made as a batch; copied, because runtimes reuse their memory."""
    outputs = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs
