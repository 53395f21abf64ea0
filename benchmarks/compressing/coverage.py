"""What slimfront can do with each of over fifty architectures of torchvision, transformers and timm, with random weights.

    python benchmarks/compressing/coverage.py --quick
    python benchmarks/compressing/coverage.py --json coverage.json --speed

Each model goes through the door that a user's model goes through, and is inspected. Then every layer is quantized to 8 bits and lowered for OpenVINO, and
the precision of each is read off the runtime's execution graph. Printed are layers on integers, modules with matrices that are left alone,
groups of channels and heads that can be removed (each proved to equal masking), the share of parameters they can take, blocks,
and seconds of `inspect`. Each model runs in a process of its own, which has `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, CLASSES
from rich.console import Console
from rich.table import Table
from slimfront.compression.quantization.quantize import quantize
from slimfront.core.batch import INPUT, by_name
from slimfront.hardware_profiles.bench.paired_timing import paired_timing
from slimfront.hardware_profiles.cards.target import Target, load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.inspection.inspect import inspect_workload
from slimfront.workloads.contract import held
from slimfront.workloads.load import adopt_workload
from slimfront.workloads.workload import Workload
from torch import Tensor
from torch.utils.data import TensorDataset

QUICK = ("torchvision:mobilenet_v3_small", "transformers:bert", "timm:efficientvit_m0")
OPENVINO = load_target("cpu-openvino")
TARGETS = (OPENVINO, load_target("cpu-onnxruntime"))
SAMPLES = 8
SECONDS = 1.0
"""The time for which a form of a model is timed against its float32 form."""

COLUMNS = ("layers", "integer", "skipped", "groups", "unprunable", "removable", "blocks", "inspect_s", "int8", "half")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too, line by line")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these instead, or all whose names contain one")
    parser.add_argument("--seconds", type=float, default=120, help="that a model has (default 120)")
    parser.add_argument("--speed", action="store_true", help="time int8 and 16-bit floats against float32 too")
    options = parser.parse_args()
    wanted = options.models or (QUICK if options.quick else ARCHITECTURES)
    names = [name for name in ARCHITECTURES if any(part in name for part in wanted)]
    rows = []
    for name in names:
        rows.append(in_a_process(name, options.speed, options.seconds))
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("model", *COLUMNS, "error")
    for row in rows:
        table.add_row(row["model"], *(_cell(row.get(key, "")) for key in COLUMNS), row.get("error", ""))
    Console(width=160).print(table)


def _cell(value: object) -> str:
    return str(len(value)) if isinstance(value, dict | list) else str(value)


def in_a_process(name: str, speed: bool, seconds: float) -> dict[str, Any]:
    """The row of a model, or the error that ended it."""
    context = multiprocessing.get_context("fork")  # which spares every model the imports
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(name, speed, sender))
    process.start()
    row = receiver.recv() if receiver.poll(seconds) else {"error": f"not within {seconds:.0f} seconds"}
    process.kill()
    process.join()
    return {"model": name, **row}


def _report(name: str, speed: bool, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        sender.send(measure(name, speed))
    except Exception as error:  # a row of the table: any of the libraries may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        sender.send(
            {"error": f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"}
        )


def measure(name: str, speed: bool) -> dict[str, Any]:
    """What can be done with one model."""
    torch.manual_seed(0)
    start = time.perf_counter()
    workload = held(adopt_workload(as_workload(name), name, Path.cwd()))
    inspection = inspect_workload(workload, OPENVINO)
    seconds = time.perf_counter() - start
    gain = [gain for gain in inspection.gains if (gain.technique, gain.metric) == ("channels", "parameters")]
    policy = Policy(layers={layer.name: LayerPolicy(8, 8) for layer in inspection.layers})
    with tempfile.TemporaryDirectory() as folder:
        precisions = executed(workload, policy, OPENVINO, Path(folder))
        speeds = timed(workload, policy, Path(folder)) if speed else {}
    return {
        "layers": len(inspection.layers),
        "integer": sum(precisions.get(layer.name) == "i8" for layer in inspection.layers),
        "float": [layer.name for layer in inspection.layers if precisions.get(layer.name) != "i8"],
        "skipped": dict(inspection.skipped),
        "groups": len(inspection.groups),
        "heads": sum(group.unit == "head" for group in inspection.groups),
        "unprunable": dict(inspection.unprunable),
        "removable": round(1 - gain[0].after / gain[0].before, 3) if gain else 0.0,
        "blocks": len(inspection.blocks),
        "fixed_blocks": dict(inspection.fixed_blocks),
        "remarks": list(inspection.remarks),
        "float_only": inspection.float_only,
        "inspect_s": round(seconds, 1),
        **speeds,
    }


def as_workload(name: str) -> Workload:
    """The architecture with random data, scored by a function that any output satisfies."""
    model, example = ARCHITECTURES[name]()
    inputs = torch.cat([_like(example) for _ in range(SAMPLES)])
    data = TensorDataset(inputs, torch.randint(CLASSES, (SAMPLES,)))
    return Workload(model.eval(), data, data, data, data, example, metric=_any_score, loss=_any_loss)


def _like(example: Tensor) -> Tensor:
    if example.is_floating_point():
        return torch.randn_like(example)
    return torch.randint_like(example, 3, int(example.max()) + 1)


def _any_score(outputs: Tensor, _targets: Tensor) -> float:
    return float(outputs.mean())


def _any_loss(outputs: Tensor, _targets: Tensor) -> Tensor:
    return outputs.square().mean()


def lowered(workload: Workload, policy: Policy, target: Target, path: Path) -> Path:
    quantization = quantize(workload.model, workload.example_input, policy, workload.calibration)
    candidate = Candidate(policy, workload.model, quantization)
    return get_runtime(target.runtime).lower(candidate, workload.example_input, target, path).path


def executed(workload: Workload, policy: Policy, target: Target, folder: Path) -> dict[str, str]:
    """Layer -> precision that the runtime runs it in."""
    path = lowered(workload, policy, target, folder / "int8.onnx")
    return get_runtime(target.runtime).load(path, target).executed_precisions()


def timed(workload: Workload, policy: Policy, folder: Path) -> dict[str, dict[str, float]]:
    """Form -> target -> how many times as fast as in float32 on the same runtime."""
    layers = [layer.name for layer in find_layers(workload.model, workload.example_input)]
    forms = {"int8": policy, "half": Policy(layers={name: LayerPolicy(16, 16) for name in layers})}
    inputs = {name: tensor.numpy() for name, tensor in by_name(workload.example_input, INPUT).items()}
    speeds: dict[str, dict[str, float]] = {form: {} for form in forms}
    for target in TARGETS:
        runtime = get_runtime(target.runtime)
        reference = runtime.load(lowered(workload, Policy(), target, folder / f"{target.name}.onnx"), target)
        for form, own in forms.items():
            session = runtime.load(lowered(workload, own, target, folder / f"{target.name}-{form}.onnx"), target)
            timing = paired_timing(lambda: session.run(inputs), lambda: reference.run(inputs), SECONDS)  # noqa: B023
            speeds[form][target.name] = round(timing.conservative_speedup, 2)
    return speeds


if __name__ == "__main__":
    main()
