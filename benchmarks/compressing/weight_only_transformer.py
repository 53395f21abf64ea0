"""A Vision Transformer of 22 million parameters with weights of 8 and of 4 bits: bytes, loss and latency of its artifacts.

    python benchmarks/compressing/weight_only_transformer.py --quick
    python benchmarks/compressing/weight_only_transformer.py --weights vit.pt --train-only  # goes on where it was stopped
    python benchmarks/compressing/weight_only_transformer.py --weights vit.pt --runtimes openvino --json openvino.json

ViT-S/16 of torchvision's class learns ten orientations of generated gratings. Its weights are then stored in 8 bits (a scale for each
output channel) or in 4 bits by groups of 128 inputs, rounded to the nearest or by AWQ and GPTQ; activations stay in float32. Each
artifact is scored and timed by its runtime. The bar: 4 bits take at most 0.6 times the bytes of 8, at the same loss within noise.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from slimfront.compression.compress import compressed
from slimfront.core.statistics import NORMAL_QUANTILE
from slimfront.hardware_profiles.bench.paired_timing import paired_timing
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import Session, get_runtime
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.workloads.attention import explicit_attention
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer

CLASSES, SIZE, PIXELS_OF_A_WAVE = 10, 224, 56
BAR = 0.6
GROUP = 128


def images(count: int, seed: int) -> TensorDataset:
    """Gratings [count, 3, 224, 224] of random phase and colour in noise; the class is their orientation."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    angles = labels * math.pi / CLASSES + 0.1 * torch.randn(count, generator=generator)
    phases = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = angles.cos()[:, None, None] * rows + angles.sin()[:, None, None] * columns
    waves = (2 * math.pi / PIXELS_OF_A_WAVE * along + phases).sin()
    colours = 0.5 + torch.rand(count, 3, 1, 1, generator=generator)
    return TensorDataset(waves[:, None] * colours + torch.randn(count, 3, SIZE, SIZE, generator=generator), labels)


def transformer(depth: int) -> nn.Module:
    """ViT-S/16 by its configuration (Touvron et al. 2021, DeiT, arXiv:2012.12877, table 1)."""
    torch.manual_seed(0)
    model = VisionTransformer(SIZE, 16, depth, 6, 384, 1536, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision's zeros would learn slowly
    return model


def trained(depth: int, steps: int, weights: Path | None) -> nn.Module:
    """The network after so many steps, of which the file `weights` keeps those that are done."""
    model = transformer(depth)
    optimizer, first = torch.optim.AdamW(model.parameters(), 3e-4), 0
    if weights is not None and weights.exists():
        kept = torch.load(weights, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["steps"]
    for step in range(first, steps):
        inputs, labels = images(16, 1000 + step).tensors
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(inputs).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.3f}", flush=True)
        if weights is not None and (step % 5 == 4 or step == steps - 1):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": step + 1}
            torch.save(state, weights.with_suffix(".part"))
            weights.with_suffix(".part").replace(weights)
    return model.eval()


def policies(model: nn.Module, example: Tensor) -> dict[str, Policy]:
    """What is compared, by name; the convolution of the patches has 8 bits next to linear layers of 4."""
    layers = {layer.name: layer.kind for layer in find_layers(model, example)}
    eight = dict.fromkeys(layers, LayerPolicy(8))
    four = {name: LayerPolicy(4 if kind == "linear" else 8, weight_group_size=GROUP * (kind == "linear"))
            for name, kind in layers.items()}  # fmt: skip
    return {
        "float32": Policy(),
        "int8": Policy(layers=eight),
        "int4": Policy(layers=four),
        "int4 awq gptq": Policy(layers=four, recovery=Recovery(steps=("prune", "awq", "gptq"))),
    }


def losses(session: Session, data: TensorDataset) -> np.ndarray:
    """Cross-entropy of each sample, at batch 1."""
    inputs, labels = data.tensors
    outputs = np.concatenate([session.run({"input": image[None].numpy()})["output"].copy() for image in inputs])
    return functional.cross_entropy(torch.from_numpy(outputs), labels, reduction="none").numpy()


def measured(workload: Workload, runtime: str, seconds: float) -> list[dict[str, object]]:
    """A row for each policy on one runtime, one thread, batch 1."""
    lowered, target = get_runtime(runtime), load_target(f"cpu-{runtime}").model_copy(update={"threads": 1, "batch": 1})
    given = {"input": workload.example_input.numpy()}
    rows, sessions, found = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, policy in policies(workload.model, workload.example_input).items():
            candidate = compressed(workload, policy)
            artifact = lowered.lower(candidate, workload.example_input, target, Path(folder) / f"m{lowered.suffix}")
            session = sessions[name] = lowered.load(artifact.path, target)
            found[name] = losses(session, workload.test)
            timing = paired_timing(lambda: session.run(given), lambda: sessions["float32"].run(given), seconds)  # noqa: B023
            change = found[name] - found.get("int8", found["float32"])
            precisions = list(session.executed_precisions().values())
            rows.append({
                "runtime": runtime, "weights": name, "bytes": artifact.bytes, "loss": float(found[name].mean()),
                "loss_over_int8": float(change.mean()),
                "interval": NORMAL_QUANTILE * float(change.std()) / math.sqrt(len(change)),
                "speedup": timing.speedup, "low": timing.low, "high": timing.high, "ms": timing.candidate_ms,
                "layers": {precision: precisions.count(precision) for precision in sorted(set(precisions))},
            })  # fmt: skip
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, object]) -> str:
    return (
        f"{row['runtime']:12} {row['weights']:14} {row['bytes'] / 2**20:6.1f} MiB  loss {row['loss']:.4f} "  # type: ignore[operator]
        f"({row['loss_over_int8']:+.4f} ± {row['interval']:.4f} over int8)  {row['ms']:.1f} ms, "
        f"{row['speedup']:.2f} ({row['low']:.2f} to {row['high']:.2f}) times as fast as float32  {row['layers']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two blocks instead of twelve, fewer images and seconds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--weights", type=Path, help="keep the trained weights in this file, and go on from them")
    parser.add_argument("--train-only", action="store_true", help="end once the weights are written")
    parser.add_argument("--steps", type=int, default=60, help="of training (default 60)")
    parser.add_argument("--calibration", type=int, default=16, help="images that AWQ and GPTQ read (default 16)")
    parser.add_argument("--test", type=int, default=150, help="images that are scored (default 150)")
    parser.add_argument("--seconds", type=float, default=10, help="of timing each artifact (default 10)")
    parser.add_argument("--runtimes", nargs="+", default=["openvino", "onnxruntime"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    example = images(1, 0).tensors[0]
    model = trained(2 if options.quick else 12, 4 if options.quick else options.steps, options.weights)
    if options.train_only:
        return
    model = explicit_attention(model, example)
    calibration, test = (
        images(4 if options.quick else options.calibration, 1),
        images(16 if options.quick else options.test, 2),
    )
    workload = Workload(model, calibration, calibration, calibration, test, example)
    print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million parameters")
    rows = [
        row
        for runtime in options.runtimes
        for row in measured(workload, runtime, 4 if options.quick else options.seconds)
    ]
    size = {(row["runtime"], row["weights"]): row["bytes"] for row in rows}
    for runtime in options.runtimes:
        share = size[runtime, "int4 awq gptq"] / size[runtime, "int8"]  # type: ignore[operator]
        print(f"{runtime}: 4 bits take {share:.3f} times the bytes of 8; bar {BAR}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
