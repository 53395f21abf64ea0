"""Batches of a map-style data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..workloads.workload import MapDataset


def loader(data: MapDataset, batch_size: int, shuffle_seed: int | None = None) -> DataLoader:
    """A DataLoader over `data`, in order, or shuffled reproducibly where a seed is given."""
    generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
    return DataLoader(
        cast("Dataset", data), batch_size=batch_size, shuffle=shuffle_seed is not None, generator=generator
    )


def input_batches(data: MapDataset, batch_size: int) -> Iterator[Tensor]:
    """Inputs of `data` in order, shape [batch_size, ...]; the last batch may be smaller."""
    for inputs, _ in loader(data, batch_size):
        yield inputs


def example_batch(example_input: Tensor, batch: int) -> np.ndarray:
    """The example input, shape [1, ...], repeated to [batch, ...] float32 for a runtime."""
    return example_input.expand(batch, *example_input.shape[1:]).contiguous().cpu().numpy().astype(np.float32)
