"""Everything of slimfront that needs an NVIDIA GPU, on the one of this machine: a short search, its front, export and verification of ResNet-18
and a Vision Transformer, on PyTorch and TensorRT.

Weights are random, so that nothing is downloaded: latencies mean something, accuracies do not. Without a GPU it says so in one line and
exits with 1.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

SIZE = 224
SHOWN = ("latency_ms", "speedup", "artifact_bytes")


def require_gpu() -> None:
    if not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU: torch finds none on this machine, and nothing was run")


def searched(model: str, target: str, trials: int, folder: Path) -> dict[str, Any]:
    """What a search of a model on a target found, and whether the exported winner holds."""
    import slimfront

    study = slimfront.search(
        f"torchvision:{model}",
        name=f"{model}-{target}",
        target=target,
        budget=trials,
        space={"preset": "auto", "recovery_epochs": [0, 1]},
        storage=f"sqlite:///{folder}/gpu.db",
        artifacts=folder / "artifacts",
        progress=False,
        workload_options={"image_size": SIZE},
        compute={"device": "cuda" if target.startswith("gpu") else "auto"},
    )
    winner = study.pick()
    bundle = study.export(folder / f"{model}-{target}", trial=winner)
    broken = study.verify(bundle).broken
    measured = {name: winner.measurements[name].value for name in SHOWN}
    return {**measured, "front": len(study.front), "broken": broken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--require", action="store_true", help="only see that there is a GPU")
    parser.add_argument("--quick", action="store_true", help="three trials each")
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    parser.add_argument("--targets", nargs="+", default=["gpu-torch", "gpu-tensorrt"], help="cards of targets")
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit_b_16"], help="torchvision's names")
    arguments = parser.parse_args()
    if arguments.require or any(target.startswith("gpu") for target in arguments.targets):
        require_gpu()
    if arguments.require:
        return
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    table = Table("model", "target", *SHOWN, "front", "claims that do not hold", title=card)
    found: dict[str, Any] = {"card": card}
    trials = 3 if arguments.quick else 24
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            for target in arguments.targets:
                of = found[f"{model} {target}"] = searched(model, target, trials, Path(folder))
                figures = (f"{of[name]:.4g}" for name in SHOWN)
                table.add_row(model, target, *figures, str(of["front"]), ", ".join(of["broken"]) or "none")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
