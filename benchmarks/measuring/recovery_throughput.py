"""Samples a second of a recovery, over those of a plain PyTorch loop of the same loss, network, data, loader and batch, in turns.

The plain loops are what anybody writes: one trains on the labels alone, as a recovery of `alpha: 0` does, one distils from the
uncompressed model as well, as every other recovery does. One row more compares a recovery that distils with a loop that does not.
Data are tensors in memory, or images that are augmented as they are read. Everything runs on one thread of one process, so that
processor seconds count; printed is the median of the paired ratios.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from slimfront.compression.recovery.train import train
from slimfront.spaces.policies.policy import Recovery
from slimfront.workloads.load import adopt_workload
from slimfront.workloads.workload import MapDataset, Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

BATCH, CLASSES, EPOCHS = 32, 10, 2

COMPARED = (("labels", "labels"), ("labels and teacher", "labels and teacher"), ("labels and teacher", "labels"))
"""(what a recovery learns from, what the loop learns from that it is compared with); the last pair does not do the same work."""


class Augmented:
    """Images that are turned over at random as they are read."""

    def __init__(self, images: Tensor, classes: Tensor) -> None:
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return image.flip(-1) if torch.rand(()) < 0.5 else image, self.classes[index]


def workload(read: str, samples: int, pixels: int) -> Workload:
    torch.manual_seed(0)
    images, classes = torch.randn(samples, 3, pixels, pixels), torch.randint(CLASSES, (samples,))
    data: MapDataset = TensorDataset(images, classes) if read == "tensors" else Augmented(images, classes)
    model = resnet18(num_classes=CLASSES).eval()
    return adopt_workload(Workload(model, data, data, data, data, images[:1]), read, Path.cwd())


def plain(student: nn.Module, task: Workload, epochs: int, teacher: nn.Module | None) -> None:
    """A training loop as in PyTorch's tutorials, with the recovery's optimizer and schedule."""
    batches: DataLoader[tuple[Tensor, Tensor]] = DataLoader(task.train, BATCH, shuffle=True, drop_last=True)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(student.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * len(batches))
    student.train()
    for _ in range(epochs):
        for inputs, targets in batches:
            outputs = student(inputs)
            loss = functional.cross_entropy(outputs, targets)
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(inputs)
                pair = functional.log_softmax(outputs / 4, -1), functional.log_softmax(taught / 4, -1)
                loss = 0.3 * loss + 0.7 * 16 * functional.kl_div(*pair, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def seconds(run: Callable[[nn.Module], None], model: nn.Module) -> float:
    student = deepcopy(model)
    began = time.process_time()
    run(student)
    return time.process_time() - began


def ratios(read: str, samples: int, pixels: int, turns: int) -> dict[str, float]:
    """Recovery and loop -> the recovery's samples a second over the loop's."""
    task = workload(read, samples, pixels)

    def recovered(alpha: float) -> Callable[[nn.Module], None]:
        return lambda student: train(student, task, Recovery(EPOCHS, alpha=alpha), EPOCHS, 0, BATCH)

    runs: dict[str, Callable[[nn.Module], None]] = {
        "labels": recovered(0.0),
        "labels and teacher": recovered(0.7),
        "loop: labels": lambda student: plain(student, task, EPOCHS, None),
        "loop: labels and teacher": lambda student: plain(student, task, EPOCHS, task.model),
    }
    found: list[dict[str, float]] = []
    for _ in range(turns + 1):
        found.append({name: seconds(run, task.model) for name, run in runs.items()})
    return {
        f"{own} | {other}": statistics.median(
            turn[f"loop: {other}"] / turn[own] for turn in found[1:]
        )  # the first warms up
        for own, other in COMPARED
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller images")
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples, pixels, turns = (128, 32, 5) if arguments.quick else (512, 64, 5)
    title = f"ResNet-18, {pixels} pixels, batch {BATCH}, one thread"
    table = Table("data", "recovery from", "plain loop from", "recovery over it", title=title)
    figures = {read: ratios(read, samples, pixels, turns) for read in ("tensors", "augmented")}
    for read, of in figures.items():
        for names, ratio in of.items():
            table.add_row(read, *names.split(" | "), f"{ratio:.2f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
