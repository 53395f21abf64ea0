"""The `digits` workloads: 1,797 handwritten digits that come with scikit-learn, and networks trained on them once.

The data are the test half of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI), 8x8 counts of
0 to 16, here up-sampled bilinearly to 16x16 and normalised. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset

from ...core.console import open_console
from ...core.threads import torch_threads
from ..cache import State, trained_once
from ..workload import Workload
from .digits_model import DigitsResNet
from .digits_rnn import GRU, LSTM, DigitsRNN
from .digits_vit import DigitsViT

MEAN, DEVIATION = 0.3049, 0.3188  # of the training split's up-sampled pixels in [0, 1]
SPLIT_SEED = 0
HELD_OUT = {"test": 400, "validation": 400, "calibration": 100}  # cut off in this order; the rest is the training split


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": DigitsResNet,
    "vit": DigitsViT,
    "gru": partial(DigitsRNN, GRU, 192),
    "lstm": partial(DigitsRNN, LSTM),
}


@dataclass(frozen=True)
class Recipe:
    """How a reference network is trained; all of it is in the name of the cached file.

    Attributes:
        network: a key of `NETWORKS`.
        version: raise it when the network or `train_digits` changes in a way that the other fields do not show.
        seed: of the first weights, the order of the samples and the augmentation.
        epochs: passes over the training split.
        batch: samples per step; divides 897, because batch-norm learns nothing good from a last batch of one.
        optimizer: "sgd" with Nesterov momentum 0.9, or "adamw" with gradients of a norm of 1 at most.
        learning_rate: peak of a one-cycle schedule.
        weight_decay: of the optimizer.
        rotation: augmentation, up to this many degrees either way.
        shift: augmentation, up to this many pixels each way.
        zoom: augmentation, up to this fraction larger or smaller.
    """

    network: str = "resnet"
    version: int = 1
    seed: int = 0
    epochs: int = 10
    batch: int = 69
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    rotation: float = 10.0
    shift: float = 1.0
    zoom: float = 0.1

    @property
    def file_name(self) -> str:
        """Name of the file in the cache, another one for every other recipe."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:12]
        return f"digits-{self.network}-v{self.version}-{digest}.safetensors"


RECURRENT = Recipe("gru", epochs=15, optimizer="adamw", learning_rate=5e-3, weight_decay=0.01)
RECIPES = {
    "digits": Recipe(),
    "digits-vit": Recipe("vit", version=2, epochs=30, optimizer="adamw", learning_rate=4e-3, weight_decay=0.1),
    "digits-gru": replace(RECURRENT, version=2),
    "digits-lstm": replace(RECURRENT, network="lstm"),
}
"""Built-in workload -> how its network is trained."""


def digits(name: str = "digits", device: str = "cpu", progress: bool = True) -> Workload:
    """A workload of `RECIPES`; its network is trained on first use and read from the user's cache folder afterwards.

    Args:
        name: of the workload.
        device: where the model and the example input are; the data stay on the CPU. Training is on the CPU wherever
            the model goes afterwards, so that a machine has one set of weights.
        progress: show a progress bar on stderr while training.

    Returns:
        Inputs are float32 [1, 16, 16], targets int64 classes 0 to 9; the model is in evaluation mode.
    """
    model = reference_model(RECIPES[name], progress).to(device)
    data = digits_datasets()
    return Workload(
        model,
        train=data["train"],
        calibration=data["calibration"],
        validation=data["validation"],
        test=data["test"],
        example_inputs=data["train"].tensors[0][:1].to(device),
        name=name,
    )


def _pixels_and_classes() -> tuple[np.ndarray, np.ndarray]:
    """Counts from 0 to 16, shape [1797, 64], and classes, int64 [1797]."""
    pixels, classes = load_digits(return_X_y=True)
    return np.asarray(pixels), np.asarray(classes, dtype=np.int64)


def digits_splits() -> dict[str, np.ndarray]:
    """Indices of scikit-learn's digits in each split: stratified by class, disjoint, always the same."""
    _, target = _pixels_and_classes()
    rest = np.arange(len(target))
    splits: dict[str, np.ndarray] = {}
    for name, size in HELD_OUT.items():
        cut = train_test_split(rest, test_size=size, random_state=SPLIT_SEED, stratify=target[rest])
        rest, splits[name] = np.asarray(cut[0]), np.asarray(cut[1])
    return {**splits, "train": rest}


def digits_datasets() -> dict[str, TensorDataset]:
    """The four splits as data sets of (float32 [1, 16, 16], int64 class)."""
    pixels, classes = _pixels_and_classes()
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    images = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    images, targets = (images - MEAN) / DEVIATION, torch.tensor(classes)
    return {name: TensorDataset(images[index], targets[index]) for name, index in digits_splits().items()}


def reference_model(recipe: Recipe, progress: bool = True) -> nn.Module:
    """The network in evaluation mode, with its weights from the cache, or trained first where they are not there yet.

    Raises:
        WorkloadError: the cache cannot be read or written.
    """
    model = NETWORKS[recipe.network]()
    model.load_state_dict(trained_once(recipe.file_name, lambda: train_digits(recipe, progress)))
    return model.eval()


def train_digits(recipe: Recipe, progress: bool = True) -> State:
    """Train the reference network on the training split; the same weights every time on one kind of processor.

    Sums depend on how many threads share them: one thread makes the weights the same on any number of cores, and steps
    this small take no longer on it. The caller's random state and number of threads are left as they were.
    """
    images, targets = digits_datasets()["train"].tensors
    steps_per_epoch = math.ceil(len(images) / recipe.batch)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch_threads(1), torch.random.fork_rng(devices=[]), _progress_bar(progress) as bar:
        torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed would touch the caller's GPUs too
        model = NETWORKS[recipe.network]().to(memory_format=torch.channels_last)  # the faster layout on a CPU
        optimizer = _optimizer(model, recipe)
        schedule = OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps_per_epoch)
        for _ in bar.track(range(recipe.epochs), description=f"Training the digits {recipe.network} (once)"):
            for batch in torch.randperm(len(images), generator=generator).split(recipe.batch):
                inputs = _augmented(images[batch], recipe, generator).to(memory_format=torch.channels_last)
                loss = functional.cross_entropy(model(inputs), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                if recipe.optimizer == "adamw":
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
    return model.state_dict()


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters, rate, decay = model.parameters(), recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay)
    return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=decay)


def _augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Images [n, 1, 16, 16], each turned, zoomed and shifted a little by its own random amounts."""
    angle, zoom, right, down = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, zoom = angle * math.radians(recipe.rotation), 1 + zoom * recipe.zoom
    pixel = 2 / images.shape[-1]  # affine_grid's coordinates run from -1 to 1
    rows = (
        torch.stack([zoom * angle.cos(), -zoom * angle.sin(), right * recipe.shift * pixel], dim=1),
        torch.stack([zoom * angle.sin(), zoom * angle.cos(), down * recipe.shift * pixel], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    background = -MEAN / DEVIATION  # grid_sample fills with zeros, so black has to be zero there
    return functional.grid_sample(images - background, grid, align_corners=False) + background


def _progress_bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = open_console(stderr=True)
    return Progress(*columns, console=console, transient=console.is_terminal, disable=not shown)
