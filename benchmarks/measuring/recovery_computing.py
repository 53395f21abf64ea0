"""Samples a second of a recovery by what it computes with, over those of a plain one in float32, in turns.

Images of one size, tensors in memory, networks of torchvision. What is timed are steps of a training, the teacher's outputs known; the
compilation is timed apart, as what the first step takes longer than the others.
"""

import argparse
import json
import statistics
import time
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from slimfront.compression.recovery.train import training
from slimfront.spaces.policies.policy import Recovery
from slimfront.workloads.workload import Workload
from torch.utils.data import TensorDataset
from torchvision.models import get_model

BATCH, CLASSES = 32, 10
SETTINGS = {
    "plain": {},
    "channels_last": {"channels_last": True},
    "mixed_precision": {"mixed_precision": True},
    "mixed_precision, channels_last": {"mixed_precision": True, "channels_last": True},
    "compile": {"compile": True},
}


def workload(name: str, pixels: int, steps: int) -> Workload:
    torch.manual_seed(0)
    images, classes = torch.randn(BATCH * steps, 3, pixels, pixels), torch.randint(CLASSES, (BATCH * steps,))
    data = TensorDataset(images, classes)
    return Workload(get_model(name, num_classes=CLASSES).eval(), data, data, data, data, images[:1])


def seconds_of_steps(task: Workload, settings: dict[str, bool], steps: int) -> list[float]:
    """Seconds of each step of a training of two epochs, the first of which has what is done once."""
    recovery, looks = Recovery(2, **settings), [step / steps for step in range(1, 2 * steps)]
    found, began = [], time.perf_counter()
    for _ in training(deepcopy(task.model), task, recovery, 2, 0, BATCH, looks=looks):
        found.append(time.perf_counter() - began)
        began = time.perf_counter()
    return found


def figures(name: str, pixels: int, steps: int, turns: int, compiles: bool) -> dict[str, dict[str, float]]:
    """Setting -> samples a second over a plain recovery's, and seconds that the first step takes longer."""
    task = workload(name, pixels, steps)
    list(training(deepcopy(task.model), task, Recovery(1), 1, 0, BATCH))  # the teacher's outputs are kept
    chosen = {setting: settings for setting, settings in SETTINGS.items() if compiles or setting != "compile"}
    ratios: dict[str, list[float]] = {setting: [] for setting in chosen}
    first: dict[str, list[float]] = {setting: [] for setting in chosen}
    for _ in range(turns):
        plain = 0.0
        for setting, settings in chosen.items():
            found = seconds_of_steps(task, settings, steps)
            step = statistics.median(found[2:])
            plain = plain or step
            ratios[setting].append(plain / step)
            first[setting].append(found[0] - step)
    return {
        setting: {"ratio": statistics.median(ratios[setting]), "first_s": statistics.median(first[setting])}
        for setting in chosen
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two turns of few steps, without compilation")
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pixels, steps, turns = (64, 3, 2) if arguments.quick else (96, 8, 3)
    table = Table("network", "recovery", "samples a second over plain", "first step longer by")
    results = {name: figures(name, pixels, steps, turns, not arguments.quick) for name in ("resnet18", "mobilenet_v2")}
    for name, of in results.items():
        for setting, each in of.items():
            table.add_row(name, setting, f"{each['ratio']:.2f}", f"{each['first_s']:.1f} s")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
