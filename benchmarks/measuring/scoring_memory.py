"""Peak memory of scoring over validation sets that are generated as they are read, by their length; it should not depend on it.

Each set is scored in a process of its own by ONNX Runtime: a reference whose outputs are kept on disk, then the same artifact against them.
Printed is the most resident memory beyond what the process had before, in MiB, with the seconds.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from slimfront.evaluators.accuracy import score
from slimfront.evaluators.evaluator import Context
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import Policy
from slimfront.workloads.workload import Workload
from torch import Tensor, nn

MIB = 2**20
SIZE = 16


@dataclass(frozen=True)
class Generated:
    """Images [1, 16, 16] made from their number, with a class of three for each image, or for each pixel."""

    count: int
    dense: bool

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        inputs = torch.randn(1, SIZE, SIZE, generator=generator)
        return inputs, (inputs[0] > 0).long() + (inputs[0] > 1) if self.dense else torch.tensor(index % 3)


def workload(metric: str, count: int) -> Workload:
    torch.manual_seed(0)
    dense = metric == "miou"
    head = [] if dense else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), *head).eval()
    data, few = Generated(count, dense), Generated(64, dense)
    return Workload(model, few, few, data, few, few[0][0][None], metric)


def measure(metric: str, count: int) -> None:
    torch.set_num_threads(1)
    task, runtime = workload(metric, count), get_runtime("onnxruntime")
    target = load_target("cpu-onnxruntime").model_copy(update={"batch": 64})
    context = Context(task, target, runtime)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        artifact = runtime.lower(Candidate(Policy(), task.model), task.example_input, target, path)
        score(artifact, Generated(64, metric == "miou"), context)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter()
        reference = score(artifact, task.validation, context, keep=Path(folder) / "outputs")
        scores = score(artifact, task.validation, context, reference=reference)
        after, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - started
        kept = sum(file.stat().st_size for file in reference.kept.files) if reference.kept else 0
    table = Table("metric", "samples", "MiB beyond", "MiB of outputs on disk", "seconds", "value", "largest damage")
    figures = f"{(after - before) / MIB:.0f}", f"{kept / MIB:.0f}", f"{seconds:.0f}", f"{scores.value:.4f}"
    damage = 0.0 if scores.damage is None else float(scores.damage.max())
    table.add_row(metric, f"{count:,}", *figures, f"{damage:.1g}")
    Console(width=120).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--metrics", nargs="+", default=["top1", "miou"])
    options = parser.parse_args()
    for metric in options.metrics:
        for count in options.samples:
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(metric, count))
            process.start()
            process.join()
