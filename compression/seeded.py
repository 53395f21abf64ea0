"""Samples whose random numbers depend on the seed, the epoch and the sample alone, whichever process reads them and after what."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler

from ..workloads.samples import MapDataset, Samples


class Shuffled(Sampler[int]):
    """All indices of a data set in an order of its own each time, the same orders for the same seed."""

    def __init__(self, count: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._order = RandomSampler(range(count), generator=self._generator)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        # As a DataLoader with this generator draws, which orders have followed since the first version: a seed first, then the order.
        torch.empty((), dtype=torch.int64).random_(generator=self._generator)
        yield from self._order


class EpochOrder(Sampler[tuple[int, int]]):
    """The order of another sampler, each index with the number of times that it was gone through before."""

    def __init__(self, order: Shuffled) -> None:
        self._order, self._epoch = order, -1

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self._epoch += 1
        epoch = self._epoch
        return ((index, epoch) for index in self._order)


class Seeded:
    """A data set whose samples are read by (index, epoch), with random numbers of torch, numpy and Python that follow from both and
    a seed. A generator of the data set's own draws as it likes."""

    def __init__(self, data: MapDataset, seed: int) -> None:
        self._data, self._seed = data, seed

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Any, ...]:
        index, epoch = place
        with _drawing_from(self._seed, epoch, index):
            return self._data[index]


class Pairs:
    """The pairs of samples as their data set gives them, for a collation of its own."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._samples.pair(index)


@contextmanager
def _drawing_from(*numbers: int) -> Iterator[None]:
    """Random numbers that follow from `numbers` inside; afterwards those that would have come without."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # of the processor alone: what a GPU draws is the training's
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
