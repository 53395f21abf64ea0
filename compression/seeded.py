"""Samples whose random numbers depend on the seed, the epoch and the sample alone, whichever process reads them and after what."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from ..workloads.samples import MapDataset, Samples


class EpochOrder(Protocol):
    """An order of samples that knows which epoch it is of."""

    epoch: int

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...


class Numbered(Sampler[tuple[int, int]]):
    """The indices of an order, each with the number of the epoch."""

    def __init__(self, order: EpochOrder) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self._order.epoch
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
