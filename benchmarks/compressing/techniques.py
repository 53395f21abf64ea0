"""What low bits, pruning and distillation cost on the digits CNN, recovered and measured on the test split.

Median of three seeds of recovery. The student trained from scratch has the same architecture, random weights, the labels
alone, and the same epochs, schedule and best of three learning rates on the validation split; distilled ones start from
the teacher's most important channels. What takes neither labels nor training reads a calibration split drawn from the training
data for each seed. `--quick` takes one seed, fewer epochs, one learning rate and the cases that bars are held against,
`--only TEXT` the cases whose name has that text, `--seeds` others than the three.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from slimfront.compression.pruning.prune import pruned_copy, reestimate_batch_norm
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.recovery.recover import recover
from slimfront.evaluators.accuracy import score
from slimfront.evaluators.evaluator import Context
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.models.channel_groups import ChannelGroup, find_channel_groups
from slimfront.spaces.models.layers import find_layers, macs_by_module
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.recovery import RecoveryStep
from slimfront.workloads.load import load_workload
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import Subset

RATES = (0.01, 0.03, 0.1)
STEPS: tuple[tuple[RecoveryStep, ...], ...] = (
    (), ("equalize",), ("correct_bias",), ("equalize", "correct_bias"), ("adaround",), ("adaround", "correct_bias"),
)  # fmt: skip
TARGET = load_target("cpu-openvino")


@dataclass(frozen=True)
class Bench:
    """The workload and what is needed to compress it."""

    context: Context
    groups: list[ChannelGroup]
    folder: Path
    rates: tuple[float, ...] = RATES

    def accuracy(self, policy: Policy, model: nn.Module, split: str = "test") -> float:
        """Of the artifact on OpenVINO."""
        workload = self.context.workload
        candidate = make_candidate(model, workload.example_input, policy, workload.calibration)
        artifact = self.context.runtime.lower(candidate, workload.example_input, TARGET, self.folder / "model.onnx")
        return score(artifact, getattr(workload, split), self.context).value

    def pruned(self, policy: Policy) -> nn.Module:
        workload = self.context.workload
        model = pruned_copy(workload.model, workload.example_input, policy, self.groups)
        reestimate_batch_norm(model, workload.calibration)
        return model

    def recovered(self, policy: Policy, seed: int) -> nn.Module:
        return recover(self.pruned(policy), self.context.workload, policy, seed)

    def from_scratch(self, policy: Policy, seed: int) -> nn.Module:
        """The architecture of `policy` from random weights and labels alone, at the best of `rates` on validation."""
        students = []
        for rate in self.rates:
            student = self.pruned(policy)
            torch.manual_seed(seed)
            for module in student.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            recovery = Recovery(policy.recovery.epochs, rate, alpha=0.0)
            recover(student, self.context.workload, Policy(recovery=recovery), seed)
            students.append(student)
        return max(students, key=lambda student: self.accuracy(Policy(), student, "validation"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs instead of five, fewer cases")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="0 1 2 unless given")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="only the cases whose name has one of these"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the artifact in work is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    epochs = 2 if options.quick else 5
    workload = load_workload("digits")
    groups, _ = find_channel_groups(workload.model, workload.example_input)
    context = Context(workload, TARGET, get_runtime(TARGET.runtime), threads=1)
    bench = Bench(context, groups, options.folder, RATES[1:2] if options.quick else RATES)
    float32 = bench.accuracy(Policy(), workload.model)
    print(f"float32: {float32:.4f} on {len(workload.test)} images", flush=True)
    grids = {(3, 8): ((), ("adaround",))} if options.quick else dict.fromkeys(((4, 4), (3, 8)), STEPS)
    made = {**cases(bench, epochs), **without_training(bench, grids)}
    rows = [
        measure(name, make, bench, seeds, float32)
        for name, make in made.items()
        if any(text in name for text in options.only)
    ]
    show(rows, float32)
    if options.json:
        options.json.write_text(
            json.dumps({"float32": float32, "seeds": seeds, "epochs": epochs, "rows": rows}, indent=2)
        )


def cases(bench: Bench, epochs: int) -> dict[str, Callable[[int], tuple[Policy, nn.Module]]]:
    """Name -> policy and model of a seed."""
    workload = bench.context.workload
    layers = {layer.name: LayerPolicy(4, 8) for layer in find_layers(workload.model, workload.example_input)}
    plain = Policy(layers=layers)
    aware = Policy(layers=layers, recovery=Recovery(2, 0.003, steps=("prune", "quantize", "train")))
    students = {width: Policy(width=width, recovery=Recovery(epochs, 0.03)) for width in (0.5, 0.25)}
    made: dict[str, Callable[[int], tuple[Policy, nn.Module]]] = {
        "4-bit weights, 8-bit activations": lambda _: (plain, copy.deepcopy(workload.model)),
        "the same, quantization-aware": lambda seed: (aware, bench.recovered(aware, seed)),
    }
    for width, policy in students.items():
        made[f"width {width}, distilled"] = lambda seed, policy=policy: (policy, bench.recovered(policy, seed))
        made[f"width {width}, from scratch"] = lambda seed, policy=policy: (policy, bench.from_scratch(policy, seed))
    return made


def without_training(
    bench: Bench, grids: Mapping[tuple[int, int], Sequence[tuple[RecoveryStep, ...]]]
) -> dict[str, Callable[[int], tuple[Policy, nn.Module]]]:
    """As `cases`: few bits with nothing but a calibration split; `grids` are (weight, activation) bits -> steps to try."""
    workload = bench.context.workload
    names = [layer.name for layer in find_layers(workload.model, workload.example_input)]

    def case(bits: tuple[int, int], steps: tuple[RecoveryStep, ...]) -> Callable[[int], tuple[Policy, nn.Module]]:
        layers = {name: LayerPolicy(*bits) for name in names}
        policy = Policy(layers=layers, recovery=Recovery(steps=("prune", *steps)) if steps else Recovery())
        return lambda seed: (policy, recover(copy.deepcopy(workload.model), drawn(workload, seed), policy, seed))

    return {
        f"{bits[0]}/{bits[1]} bits, {' and '.join(steps) or 'rounded to nearest'}": case(bits, steps)
        for bits, each in grids.items()
        for steps in each
    }


def drawn(workload: Workload, seed: int) -> Workload:
    """The workload with a calibration split of the same size drawn from its training data."""
    order = torch.randperm(len(workload.train), generator=torch.Generator().manual_seed(seed)).tolist()
    return replace(workload, calibration=Subset(workload.train, order[: len(workload.calibration)]))


def measure(
    name: str, make: Callable[[int], tuple[Policy, nn.Module]], bench: Bench, seeds: Sequence[int], float32: float
) -> dict[str, object]:
    """Accuracies of each of `seeds`, the drop of their median, and the share of multiply-adds that is gone."""
    workload, start = bench.context.workload, time.perf_counter()
    policies, models = zip(*(make(seed) for seed in seeds), strict=True)
    accuracies = [bench.accuracy(policy, model) for policy, model in zip(policies, models, strict=True)]
    macs = [macs_by_module(model, workload.example_input)[""] for model in (models[0], workload.model)]
    row = {
        "technique": name,
        "accuracies": accuracies,
        "median": statistics.median(accuracies),
        "drop": float32 - statistics.median(accuracies),
        "flops_removed": 1 - macs[0] / macs[1],
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(row), flush=True)
    return row


def show(rows: list[dict[str, object]], float32: float) -> None:
    table = Table(
        "technique", "test accuracy", f"below float32 ({float32:.4f})", "of each seed", "FLOPs removed", "seconds"
    )
    for row in rows:
        each = " ".join(f"{accuracy:.4f}" for accuracy in row["accuracies"])
        table.add_row(
            row["technique"],
            f"{row['median']:.4f}",
            f"{100 * row['drop']:+.2f} points",
            each,
            f"{row['flops_removed']:.0%}",
            f"{row['seconds']:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
