"""Which convolutions and linear layers of twelve torchvision architectures run in 8-bit integers on OpenVINO, by its own report.

Every layer that a policy may touch is quantized (weights and input to 8 bits), the model lowered, and the precision of each
read off the runtime's execution graph. Matrices that no layer holds are counted as uncovered, under the module that has
them. Weights are random: nothing is downloaded. `--quick` takes the three smallest.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from slimfront.compression.quantization.quantize import quantize
from slimfront.core.errors import SlimfrontError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.workloads.attention import explicit_attention
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models import get_model

QUICK = ("mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x1_0")
MODELS = (
    *QUICK,
    "resnet50",
    "efficientnet_b0",
    "densenet121",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_32",
    "swin_t",
    "googlenet",
    "resnext50_32x4d",
)
TARGET = load_target("cpu-openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("model", "layers", "on integers", "in float", "matrices outside layers", "seconds")
    rows = []
    for name in options.models or (QUICK if options.quick else MODELS):
        row = measure(name)
        rows.append(row)
        cells = ("layers", "integer", "float", "outside", "seconds")
        table.add_row(name, *(str(row.get(key, row.get("error", ""))) for key in cells))
        print(json.dumps(row), flush=True)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


def measure(name: str) -> dict[str, object]:
    """How many layers of `name` run on integers, and which do not."""
    torch.manual_seed(0)
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    images = torch.randn(4, 3, 224, 224)
    model = explicit_attention(get_model(name, weights=None, **extra).eval(), images[:1])
    start = time.perf_counter()
    try:
        precisions, layers = executed(model, images)
    except SlimfrontError as error:
        return {"model": name, "error": str(error)}
    floats = [layer for layer in layers if precisions.get(layer) != "i8"]
    return {
        "model": name,
        "layers": len(layers),
        "integer": len(layers) - len(floats),
        "float": floats,
        "outside": sorted(matrices_outside(model, set(layers))),
        "seconds": round(time.perf_counter() - start, 1),
    }


def executed(model: nn.Module, images: Tensor) -> tuple[dict[str, str], list[str]]:
    """Layer -> precision OpenVINO runs it in, and all layers."""
    example = images[:1]
    layers = [layer.name for layer in find_layers(model, example)]
    policy = Policy(layers={name: LayerPolicy(8, 8) for name in layers})
    quantization = quantize(model, example, policy, TensorDataset(images, torch.zeros(len(images), dtype=torch.int64)))
    with tempfile.TemporaryDirectory() as folder:
        runtime = get_runtime(TARGET.runtime)
        candidate = Candidate(policy, model, quantization)
        artifact = runtime.lower(candidate, example, TARGET, Path(folder) / "model.onnx")
        return runtime.load(artifact.path, TARGET).executed_precisions(), layers


def matrices_outside(model: nn.Module, layers: set[str]) -> Iterator[str]:
    """Parameters with two dimensions or more that are of no layer, and no position or class token."""
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if parameter.ndim >= 2 and owner not in layers and name.endswith("weight"):
            yield name


if __name__ == "__main__":
    main()
