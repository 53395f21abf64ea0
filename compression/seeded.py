"""Samples whose random numbers depend on the seed, the epoch and the sample alone, whichever process reads them and after what."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from ..core.batch import tensors_of
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
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> list[tuple[Any, ...]]:
        """The samples at several places, as loaders of torch read a batch: the generators are put back once, which takes
        longer than seeding them."""
        with _generators_kept():
            return [self._drawn(index, epoch) for index, epoch in places]

    def _drawn(self, index: int, epoch: int) -> tuple[Any, ...]:
        _seed_generators(self._seed, epoch, index)
        return self._data[index]


class Identified:
    """A data set whose samples have their place as well: (index, checksum of the inputs), shape [2]."""

    def __init__(self, data: MapDataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        inputs, target, *_ = self._data[index]
        checksum = 0
        for tensor in tensors_of(inputs):
            checksum = zlib.crc32(tensor.contiguous().numpy().tobytes(), checksum)
        return inputs, target, torch.tensor([index, checksum])


class Pairs:
    """The pairs of samples as their data set gives them, for a collation of its own."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._samples.pair(index)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Random numbers afterwards are those that would have come without the block."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def _seed_generators(*numbers: int) -> None:
    """Have the generators of torch, numpy and Python draw what follows from `numbers`."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # of the processor alone: what a GPU draws is the training's
