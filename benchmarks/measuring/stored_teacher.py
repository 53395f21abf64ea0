"""What stored outputs of a teacher gain, and what a student loses by them: the same recoveries with and without, in turns.

Speed: half of a ResNet-18's blocks learn from the whole, images read one by one, on one thread; the ratio of processor seconds, of the recovery of three epochs
in which the outputs are stored and of the next one. Quality: a small student of 300 classes of points learns from a large one, with few epochs
and several seeds; the difference in accuracy, next to the spread over seeds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from slimfront.compression.recovery.checkpoint import Checkpoint
from slimfront.compression.recovery.train import train
from slimfront.spaces.policies.policy import Recovery
from slimfront.workloads.load import adopt_workload
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, ResNet

BATCH, CLASSES, EPOCHS = 32, 300, 3


class Read(Dataset):
    """Samples that are read one by one."""

    def __init__(self, inputs: Tensor, classes: Tensor) -> None:
        self.inputs, self.classes = inputs, classes

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.classes[index]


def workload(model: nn.Module, data: Read) -> Workload:
    return adopt_workload(Workload(model.eval(), data, data, data, data, data.inputs[:1]), "read", Path.cwd())


def slim() -> ResNet:
    """Half of a ResNet-18's depth."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def recovery_s(task: Workload, student: nn.Module, folder: Path | None) -> float:
    """Processor seconds of a recovery."""
    checkpoint = Checkpoint(folder / "policy" / "training.pt", 1e9) if folder is not None else None
    began = time.process_time()
    train(student, task, Recovery(EPOCHS, stored_teacher=folder is not None), EPOCHS, 0, BATCH, checkpoint=checkpoint)
    spent = time.process_time() - began
    if folder is not None:
        (folder / "policy" / "training.pt").unlink()
    return spent


def speed(samples: int, pixels: int, turns: int) -> dict[str, float]:
    """The median ratio of samples a second over those of a recovery whose teacher always runs."""
    torch.manual_seed(0)
    data = Read(torch.randn(samples, 3, pixels, pixels), torch.randint(CLASSES, (samples,)))
    task = workload(resnet18(num_classes=CLASSES), data)
    first, later = [], []
    for turn in range(turns + 1):  # the first warms up
        with tempfile.TemporaryDirectory() as folder:
            without, storing, reading = (
                recovery_s(task, slim(), place) for place in (None, Path(folder), Path(folder))
            )
            size = sum(file.stat().st_size for file in Path(folder, "teacher").glob("*.records"))
        if turn:
            first.append(without / storing)
            later.append(without / reading)
    return {"storing": statistics.median(first), "stored": statistics.median(later), "bytes a sample": size / samples}


def points(seed: int, count: int) -> Read:
    """Points around one centre a class."""
    centres = 1.2 * torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(7))
    drawn = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (count,), generator=drawn)
    return Read(centres[classes] + torch.randn(count, 32, generator=drawn), classes)


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, CLASSES))


@torch.no_grad()
def accuracy(model: nn.Module, data: Read) -> float:
    return float((model.eval()(data.inputs).argmax(1) == data.classes).float().mean())


def quality(epochs: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Percent of correct classes: the teacher's, the student's with and without stored outputs, and the difference of each seed."""
    data, test = points(1, 9000), points(2, 9000)
    torch.manual_seed(0)
    labels = workload(network(256), data)
    teacher = network(256)
    train(teacher, labels, Recovery(epochs, 0.1, alpha=0.0), epochs, 0, BATCH)
    task = workload(teacher, data)
    found: dict[bool, list[float]] = {False: [], True: []}
    for seed in seeds:
        for stored, scores in found.items():
            torch.manual_seed(seed)
            student = network(24)
            train(student, task, Recovery(epochs, 0.1, stored_teacher=stored), epochs, seed, BATCH)
            scores.append(100 * accuracy(student, test))
    gaps = [stored - live for live, stored in zip(found[False], found[True], strict=True)]
    return {
        "teacher": 100 * accuracy(teacher, test),
        "live": statistics.mean(found[False]),
        "stored": statistics.mean(found[True]),
        "gaps": gaps,
        "spread": statistics.stdev(found[False]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images, epochs and seeds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates = speed(*((128, 32, 3) if options.quick else (512, 64, 5)))
    scores = quality(3 if options.quick else 10, range(3 if options.quick else 8))
    table = Table("samples a second over a recovery whose teacher runs", "ratio")
    table.add_row("the recovery in which outputs are stored", f"{rates['storing']:.2f}")
    table.add_row("every later one of the study", f"{rates['stored']:.2f}")
    table.add_row("bytes a sample on disk", f"{rates['bytes a sample']:.0f}")
    for name in ("teacher", "live", "stored", "spread"):
        table.add_row(f"accuracy %: {name}", f"{scores[name]:.2f}")
    table.add_row("stored - live, each seed", " ".join(f"{gap:+.2f}" for gap in scores["gaps"]))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"speed": rates, "quality": scores}, indent=1))


if __name__ == "__main__":
    main()
