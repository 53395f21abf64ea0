"""Outputs of one split on disk, which later ones of the same samples are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .tallies import Tree

MOST_BYTES = 2**30
"""Outputs of a split that take more are kept of every second sample only, or every third, and so on."""


@dataclass(frozen=True)
class KeptOutputs:
    """Outputs of every `stride`-th sample of a split.

    Attributes:
        files: of each tensor; raw numbers.
        like: the structure of tensors, each of no samples.
    """

    files: tuple[Path, ...]
    like: Tree
    stride: int

    def read(self, start: int, stop: int) -> Tree:
        """The outputs of those of the samples from `start` to `stop` that are kept."""
        first, end = _kept_before(start, self.stride), _kept_before(stop, self.stride)
        leaves, structure = pytree.tree_flatten(self.like)
        found = [_read(path, leaf, first, end) for path, leaf in zip(self.files, leaves, strict=True)]
        return pytree.tree_unflatten(found, structure)


class Keeping:
    """Writes `KeptOutputs` block by block.

    Args:
        folder: for the files.
        samples: of the split.

    Attributes:
        kept: the outputs; None before the first block.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        self.kept: KeptOutputs | None = None
        self._folder, self._samples, self._seen = folder, samples, 0
        self._files: list[BinaryIO] = []

    def close(self) -> None:
        """End the files."""
        for file in self._files:
            file.close()

    def add(self, outputs: Tree) -> None:
        """Take the outputs [n, ...] of the next samples."""
        leaves = pytree.tree_leaves(outputs)
        if self.kept is None:
            self.kept = self._begun(outputs)
            self._files += [path.open("wb") for path in self.kept.files]
        for leaf, file in zip(leaves, self._files, strict=True):
            file.write(every(leaf, self._seen, self.kept.stride).contiguous().numpy().tobytes())
        self._seen += len(leaves[0])

    def _begun(self, outputs: Tree) -> KeptOutputs:
        self._folder.mkdir(parents=True, exist_ok=True)
        leaves = pytree.tree_leaves(outputs)
        nbytes = self._samples * sum(leaf.nbytes // len(leaf) for leaf in leaves)
        files = tuple(self._folder / f"{number}.raw" for number in range(len(leaves)))
        return KeptOutputs(files, pytree.tree_map(lambda leaf: leaf[:0].clone(), outputs), -(-nbytes // MOST_BYTES))


def every(outputs: Tensor, first: int, stride: int) -> Tensor:
    """Those of the outputs [n, ...] of samples from number `first` on whose number is a multiple of `stride`."""
    return outputs[-first % stride :: stride]


def _kept_before(sample: int, stride: int) -> int:
    """How many of the samples before one are kept."""
    return -(-sample // stride)


def _read(path: Path, like: Tensor, first: int, end: int) -> Tensor:
    shape, dtype = like.shape[1:], like.numpy().dtype
    count = int(np.prod(shape, dtype=int))
    numbers = np.fromfile(path, dtype, (end - first) * count, offset=first * count * dtype.itemsize)
    return torch.from_numpy(numbers.reshape(end - first, *shape))
