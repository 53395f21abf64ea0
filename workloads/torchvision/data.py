"""Data sets for torchvision's models, by name, each split into train, calibration, validation and test.

Real ones are MNIST, CIFAR-10, CIFAR-100, a folder of images and ImageNet. They are only downloaded if the user asks for it.
`random` needs no data at all: it is for smoke runs, and its accuracy means agreement with the uncompressed model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision import datasets
from torchvision.transforms import v2

from ...core.defaults import cache_folder
from ...core.errors import WorkloadError
from ..workload import describe

logger = logging.getLogger(__name__)

Transform = Callable[[Any], Tensor]
Item = tuple[Tensor, int]
LabelledImages = datasets.MNIST | datasets.CIFAR10 | datasets.ImageFolder
Parts = tuple[LabelledImages, LabelledImages | None]
"""The data set that the training, calibration and validation splits are drawn from, and the test split where it has one."""

MAX_CALIBRATION, MAX_VALIDATION = 512, 5000
BATCH_NORM_SAMPLES = 32  # one batch, because a last batch of one sample has no statistics


class DataOptions(BaseModel):
    """The `data` option of a torchvision workload.

    Attributes:
        name: which data set.
        root: the folder it is in; what torchvision can download is by default in `data` in slimfront's cache folder.
        download: may be fetched from the internet if it is missing (MNIST and CIFAR only).
        mean, std: one number per channel, to normalise with; by default the data set's own.
        samples, classes: how many random images, and how many classes the model then has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["random", "mnist", "cifar10", "cifar100", "imagefolder", "imagenet"]
    root: Path | None = None
    download: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    samples: int = Field(default=160, ge=20)
    classes: int = Field(default=1000, ge=2)

    @model_validator(mode="after")
    def _only_what_it_uses(self) -> DataOptions:
        others = {"root", "download", "mean", "std"} if self.name == "random" else {"samples", "classes"}
        if unused := sorted(others & self.model_fields_set):
            raise ValueError(f"{', '.join(unused)} means nothing for {self.name}")
        if self.name in ("imagefolder", "imagenet") and self.root is None:
            raise ValueError(f"{self.name} needs root, the folder it is in")
        return self

    def folder(self, base: Path) -> Path:
        """The data set's folder; relative ones start from `base`."""
        return base / self.root.expanduser() if self.root else cache_folder() / "data"


@dataclass(frozen=True)
class Source:
    """One of the named data sets.

    Attributes:
        open: (root, transform, download) -> its parts, not split yet.
        size: side of the square images the model gets, in pixels, unless the user says otherwise.
        mean, std: per channel, of pixels in [0, 1].
        crop: fraction of the resized image that the centre crop keeps.
        downloads: whether torchvision can fetch it.
    """

    open: Callable[[Path, Transform, bool], Parts]
    size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: float = 224 / 256
    downloads: bool = False

    def transform(self, size: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Transform:
        """Image to normalised float32 [3, size, size], without augmentation: calibration and scoring see the same."""
        steps = [v2.RGB(), v2.Resize(round(size / self.crop)), v2.CenterCrop(size), v2.ToImage()]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean or self.mean, std or self.std)]
        return v2.Compose([*steps, v2.ToPureTensor()])


def _train_and_test(kind: type[datasets.MNIST] | type[datasets.CIFAR10]) -> Callable[[Path, Transform, bool], Parts]:
    def opened(root: Path, transform: Transform, download: bool) -> Parts:
        train = kind(root, train=True, transform=transform, download=download)
        return train, kind(root, train=False, transform=transform, download=download)

    return opened


def _imagenet(root: Path, transform: Transform, download: bool) -> Parts:
    train = datasets.ImageNet(root, split="train", transform=transform)
    return train, datasets.ImageNet(root, split="val", transform=transform)


def _image_folder(root: Path, transform: Transform, download: bool) -> Parts:
    """One folder per class, either right in `root`, or in its `train` and in its `test` or `val`."""
    if not (root / "train").is_dir():
        return datasets.ImageFolder(root, transform), None
    train = datasets.ImageFolder(root / "train", transform)
    held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if held_out is None:
        return train, None
    test = datasets.ImageFolder(held_out, transform)
    if test.classes != train.classes:
        raise WorkloadError(f"data imagefolder: the classes in {held_out} must be those in {root / 'train'}")
    return train, test


SOURCES = {
    "mnist": Source(_train_and_test(datasets.MNIST), 32, (0.1307,) * 3, (0.3081,) * 3, crop=1, downloads=True),
    "cifar10": Source(
        _train_and_test(datasets.CIFAR10), 32, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), crop=1, downloads=True
    ),
    "cifar100": Source(
        _train_and_test(datasets.CIFAR100), 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 1, downloads=True
    ),
    "imagefolder": Source(_image_folder, 224),
    "imagenet": Source(_imagenet, 224),
}


@dataclass(frozen=True)
class Splits:
    """Four disjoint data sets and how many classes they have."""

    train: Subset[Item]
    calibration: Subset[Item]
    validation: Subset[Item]
    test: Subset[Item]
    classes: int


def open_splits(options: DataOptions, transform: Transform, base: Path, seed: int) -> Splits:
    """A named data set, split: a tenth at most 512 for calibration, a fifth at most 5,000 for validation.

    The test split is the data set's own where it has one, and otherwise another fifth.

    Raises:
        WorkloadError: it is not where it should be, or could not be downloaded.
    """
    train, test = _opened(options, transform, options.folder(base))
    return _split(train, test, len(train.classes), seed)


def _opened(options: DataOptions, transform: Transform, root: Path) -> Parts:
    source = SOURCES[options.name]
    if options.download and not source.downloads:
        raise WorkloadError(
            f"data.download: {options.name} cannot be downloaded; put it in {root} and leave download out"
        )
    try:
        return source.open(root, transform, options.download)
    except (RuntimeError, OSError) as error:  # what torchvision raises for files that are missing or corrupt
        remedy = "put it there, or say `download: true` under `data`" if source.downloads else "put it there"
        if options.download:
            remedy = "the download failed"
        raise WorkloadError(f"data {options.name} was looked for in {root}: {remedy} ({describe(error)})") from error


def _split(train: LabelledImages | RandomImages, test: LabelledImages | None, classes: int, seed: int) -> Splits:
    total = len(train)
    calibration, validation = min(MAX_CALIBRATION, total // 10), min(MAX_VALIDATION, total // 5)
    sizes = [calibration, validation, total // 5 if test is None else 0]
    generator = torch.Generator().manual_seed(seed)
    parts = random_split(train, [*sizes, total - sum(sizes)], generator)
    if test is not None:
        parts[2] = Subset(test, range(len(test)))
    return Splits(parts[3], parts[0], parts[1], parts[2], classes)


class RandomImages(Dataset[Item]):
    """Seeded random images, made when asked for: upsampled coarse noise, so that they differ in more than pixel noise.

    An item is (float32 [3, size, size], class), the class 0 until `labels` says otherwise.
    """

    def __init__(self, samples: int, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.labels = [0] * samples

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self.labels[index]  # raises IndexError past the end
        generator = torch.Generator().manual_seed(self.seed * len(self) + index)
        grain = int(torch.randint(2, 17, (), generator=generator))
        coarse = 2 * torch.randn(1, 3, grain, grain, generator=generator)
        return functional.interpolate(coarse, size=(self.size, self.size), mode="bilinear")[0], label


def random_splits(options: DataOptions, model: nn.Module, size: int, seed: int, untrained: bool) -> Splits:
    """Random images labelled with the class the model itself gives each, so that accuracy is agreement with it.

    An untrained model's batch-norm statistics are first estimated on the calibration split: as they come, most networks
    give every input the same class.
    """
    images = RandomImages(options.samples, size, seed)
    splits = _split(images, None, options.classes, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # of dropout, which is active while the statistics are taken
        if untrained:
            update_bn(islice(DataLoader(splits.calibration, batch_size=BATCH_NORM_SAMPLES), 1), model)
        batches = DataLoader(images, batch_size=16)
        images.labels = [label for inputs, _ in batches for label in model.eval()(inputs).argmax(1).tolist()]
    if len(set(images.labels)) == 1:
        logger.warning("the model gives all %d random images the same class: its accuracy says nothing", len(images))
    return splits
