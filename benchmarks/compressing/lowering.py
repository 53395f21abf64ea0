"""How long a change of bits takes to lower, and how long the runtime then compiles: digits model and ResNet-18 at 224.

python benchmarks/compressing/lowering.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from slimfront.compression.quantization.quantize import quantize
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.workloads.builtin.digits_model import DigitsResNet
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

BAR_SECONDS = 0.1
BITS = [(8, 8), (4, 8), (8, 32), (32, 32)]
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits": (DigitsResNet, (1, 16, 16)),
    "resnet18": (lambda: resnet18(weights=None), (3, 224, 224)),
}


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Of the wall's clock, and of the processor's."""
    start, worked = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - worked


def measure(name: str, policies: int, folder: Path) -> dict[str, float]:
    """Median seconds of lowering and of compiling, and of the first lowering, which exports the float graph.

    Lowering is on one thread: its time of the processor is what it takes on a machine that does nothing else.
    """
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, example = make().eval(), torch.zeros(1, *shape)
    data = TensorDataset(torch.randn(4, *shape), torch.zeros(4))
    runtime, target, draw = get_runtime("openvino"), load_target("cpu-openvino"), random.Random(0)
    lowered, compiled = [], []
    for number in range(policies + 1):
        policy = Policy(layers={layer.name: LayerPolicy(*draw.choice(BITS)) for layer in find_layers(model, example)})
        candidate = Candidate(policy, model, quantize(model, example, policy, data))
        path = folder / f"{number}.onnx"
        lowered.append(seconds(lambda: runtime.lower(candidate, example, target, path)))  # noqa: B023
        compiled.append(seconds(lambda: runtime.load(path, target)))  # noqa: B023
        path.unlink()
    walls, worked = zip(*lowered[1:], strict=True)
    return {
        "first_s": lowered[0][0],
        "lower_s": statistics.median(walls),
        "slowest_lower_s": max(walls),
        "lower_cpu_s": statistics.median(worked),
        "compile_s": statistics.median(wall for wall, _ in compiled[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 policies a model instead of 15")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            found[name] = measure(name, 3 if options.quick else 15, Path(folder))
            figures = "  ".join(f"{key} {value:.3f}" for key, value in found[name].items())
            print(f"{name:10} {figures}  bar on lower_s {BAR_SECONDS}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
