"""Batches of a map-style data set, on the device that computes on them: whatever loops over a data set does so through here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from ..core.batch import INPUT, Batch, by_name, moved, moved_target, repeated
from ..core.errors import CompressionError
from ..workloads.samples import MapDataset, Samples
from .ranks import Ranks
from .seeded import Identified, Numbered, Pairs, Seeded

CALIBRATION_BATCH = 50
"""The number of calibration samples that are run at once."""


@dataclass(frozen=True)
class LabelledBatches:
    """Batches of a data set on a device: (inputs, targets, whatever else its samples have). May be iterated several times.

    Attributes:
        identified: whether what else they have is their places, which stay in the processor's memory.
    """

    loader: DataLoader
    device: torch.device
    identified: bool = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for inputs, targets, *others in self.loader:
            kept = others if self.identified else [moved_target(other, self.device) for other in others]
            yield moved(inputs, self.device), moved_target(targets, self.device), *kept


@dataclass(frozen=True)
class InputBatches(Iterable[Batch]):
    """The inputs alone."""

    batches: LabelledBatches

    def __iter__(self) -> Iterator[Batch]:
        return (inputs for inputs, *_ in self.batches)


class EpochOrder(Sampler[int]):
    """The samples in an order that follows from a seed and the number of an epoch alone, so that any epoch begins at any sample; of
    several ranks each has its share of every batch.

    Attributes:
        epoch: that the next iteration is of.
        generator: as far into the epoch as its beginning; what loads the samples may draw from it.
    """

    def __init__(self, samples: int, seed: int, batch_size: int = 1, ranks: Ranks = Ranks()) -> None:
        self._samples, self._seed, self.epoch = samples, seed, 0
        self._batch_size, self._ranks = batch_size, ranks
        self.generator = torch.Generator()
        self.begin(0)

    def begin(self, epoch: int, first: int = 0, end: int | None = None) -> None:
        """Have the next iteration be that of `epoch`, from its sample `first` to before `end`, the last one included by default."""
        self.epoch = epoch
        mixed = np.random.SeedSequence([self._seed, epoch]).generate_state(1)
        self.generator.manual_seed(int(mixed[0]))  # which heeds 32 bits
        order = torch.randperm(self._samples, generator=self.generator)
        self._left: list[int] = self._ranks.share(order[first:end].tolist(), self._batch_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._left)

    def __len__(self) -> int:
        ranks, size = self._ranks, self._batch_size
        return self._samples if ranks.is_alone else self._samples // size * (size // ranks.count)


@dataclass(frozen=True)
class ShuffledBatches:
    """Full batches of a data set on a device, in another order in each epoch, without end.

    Attributes:
        per_step: batches that make one step of an optimizer; those of an epoch that are too few for another step are left out.
    """

    batches: LabelledBatches
    order: EpochOrder
    batch_size: int
    per_step: int = 1

    def __len__(self) -> int:
        """Steps of an epoch; one where its batches are too few for that."""
        return max(1, len(self.batches) // self.per_step)

    def after(self, steps: int = 0) -> Iterator[list[tuple[Any, ...]]]:
        """The batches of each step that follows the first so many, which are not read."""
        first, samples = steps % len(self), self.per_step * self.batch_size
        for epoch in count(steps // len(self)):
            self.order.begin(epoch, first * samples, len(self) * samples)
            batches = iter(self.batches)
            while step := list(islice(batches, self.per_step)):
                yield step
            first = 0


def labelled_batches(data: MapDataset, batch_size: int, device: torch.device) -> LabelledBatches:
    """All of `data` in order, on `device`."""
    return LabelledBatches(_loader(data, batch_size, device), device)


def shuffled_batches(
    data: MapDataset, batch_size: int, device: torch.device, seed: int, per_step: int = 1, identified: bool = False
) -> ShuffledBatches:
    """Full batches of `data` on `device`, shuffled reproducibly; this rank's shares of them.

    Args:
        batch_size: of all ranks together.
        identified: whether to add (index, checksum) of each sample, shape [batch_size, 2]; of data that `is_identifiable`.
    """
    ranks = Ranks.here()
    if batch_size % ranks.count or (len(data) < batch_size and not ranks.is_alone):
        raise CompressionError(
            f"{ranks.count} GPUs cannot share a batch of {batch_size} of {len(data)} samples equally"
        )
    order = EpochOrder(len(data), seed, batch_size, ranks)
    drops = _fills_a_batch(data, batch_size)
    loader = _loader(data, batch_size // ranks.count, device, drops, order, seed, identified)
    return ShuffledBatches(LabelledBatches(loader, device, identified), order, batch_size, per_step)


def is_identifiable(data: MapDataset) -> bool:
    """Whether samples are read one by one, and become inputs before they become a batch."""
    whole = data.dataset if isinstance(data, Subset) else data
    return isinstance(whole, Samples) and whole.reading.collate is None


def input_batches(data: MapDataset, batch_size: int, device: torch.device) -> InputBatches:
    """Inputs of `data` on `device`, in order in full batches, shape [batch_size, ...]; in one smaller batch where there are fewer."""
    loader = _loader(data, batch_size, device, _fills_a_batch(data, batch_size))
    return InputBatches(LabelledBatches(loader, device))


def _loader(
    data: MapDataset,
    batch_size: int,
    device: torch.device,
    drop_last: bool = False,
    order: EpochOrder | None = None,
    seed: int = 0,
    identified: bool = False,
) -> DataLoader:
    """A loader that reads as the workload says, into memory from which copies to a GPU need not be waited for."""
    whole = data.dataset if isinstance(data, Subset) else data
    # Plain tensors have nothing to read ahead, collate or draw.
    reading: dict[str, Any] = {"dataset": data, "sampler": order}
    if isinstance(whole, Samples):
        reading = _reading(Identified(data) if identified else data, whole, order, seed)
    return DataLoader(
        **reading,
        batch_size=batch_size,
        generator=None if order is None else order.generator,
        drop_last=drop_last,
        pin_memory=device.type == "cuda",
    )


def _reading(data: MapDataset, samples: Samples, order: EpochOrder | None, seed: int) -> dict[str, Any]:
    """The arguments of a loader that say how `data`, all or a part of `samples`, are read."""
    reading, collate = samples.reading, None
    if reading.collate is not None:
        pairs, collate = cast("MapDataset", Pairs(samples)), samples.batch
        data = subset(pairs, data.indices) if isinstance(data, Subset) else pairs
    return {
        "dataset": data if order is None else Seeded(data, seed),
        "sampler": None if order is None else Numbered(order),
        "collate_fn": collate,
        "num_workers": reading.workers,
        "persistent_workers": reading.workers > 0,
        "multiprocessing_context": "fork" if reading.workers else None,  # loky's processes have a context without them
    }


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
