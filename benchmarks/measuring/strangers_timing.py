"""Whether someone else measures what a bundle's card says: its speed-up and its milliseconds.

    python benchmarks/measuring/strangers_timing.py [NETWORK ...]

Three networks of its own making (a residual CNN at 64 pixels, a ResNet-20 and a small Vision Transformer at 32) are exported by
plain `torch.onnx.export`, searched for a few trials, and the fastest point is exported as a bundle. Then, in processes that
import nothing of slimfront:

1. `strangers_clock.py` times the plain file as OpenVINO runs it, and in forced float32, in turns with the bundle: its ratios are
   held against the card's `speedup` (what the user would have otherwise) and `speedup_float32`. Its ratio of runs that also copy
   their input in and take their output out, which costs both files the same, is printed next to them.
2. OpenVINO's `benchmark_app` times the bundle's model: its median is held against the card's `latency_ms`.

A stranger loads each file once, and one load is a little faster than another. So every process of the clock loads each several
times, the median load of all is what the card is held against, and the spread between loads is printed: the luck of a stranger.

`ONEDNN_MAX_CPU_ISA=AVX2` stands in for a processor without 16-bit units. Weights are random and labels are what the model says: a timing needs no more. `--quick` takes the ResNet-20 only, for less time.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from slimfront import search
from slimfront.hardware_profiles.bench.bench import bench_cores
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset

console = Console()
HERE = Path(__file__).parent

SPEEDUP_BAR, LATENCY_BAR = 0.05, 0.1
"""How far a card may be from the stranger's ratio, and from the milliseconds of OpenVINO's tool."""

LOADS = 3
"""How often each process of the stranger's clock loads each file."""

SPACE = {
    "preset": "none",
    "granularity": "model",
    "weight_bits": [8, 32],
    "activation_bits": [8, 32],
    "width": [1.0, 0.5],
}


@dataclass(frozen=True)
class Row:
    """One figure of a card with its interval, and what a stranger measured.

    Attributes:
        luck: the relative standard deviation of what strangers who load once would have measured.
    """

    network: str
    figure: str
    card: float
    low: float
    high: float
    stranger: float
    luck: float
    limit: float | None

    @classmethod
    def of(
        cls, network: str, figure: str, card: dict[str, float], strangers: list[float], limit: float | None
    ) -> "Row":
        """A figure of a card against those of several strangers."""
        luck = float(np.log(strangers).std(ddof=1))
        return cls(network, figure, card["value"], card["low"], card["high"], statistics.median(strangers), luck, limit)

    @property
    def off(self) -> float:
        return self.card / self.stranger - 1

    @property
    def holds(self) -> bool | None:
        return None if self.limit is None else abs(self.off) <= self.limit


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, which a stride or a change of channels makes a 1 x 1 convolution."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = stride == 1 and channels == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class VisionTransformer(nn.Module):
    """Patches of 4 x 4 pixels, six pre-norm blocks of width 192."""

    def __init__(self, size: int = 32, width: int = 192, blocks: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, (size // 4) ** 2, width) / 50)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.projections = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(blocks))
        self.mixes = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for index, (projection, mix, mlp) in enumerate(zip(self.projections, self.mixes, self.mlps, strict=True)):
            q, k, v = projection(self.norms[2 * index](x)).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
            heads = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + mix(heads.transpose(1, 2).flatten(2))
            x = x + mlp(self.norms[2 * index + 1](x))
        return self.head(x.mean(1))


def residual_cnn(stem: int, depth: int) -> nn.Sequential:
    """Three stages of `depth` residual blocks, each at half the resolution of the last and twice its channels."""
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
    channels = stem
    for stage in range(3):
        for index in range(depth):
            outputs = stem * 2**stage
            layers.append(Residual(channels, outputs, 2 if stage and not index else 1))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


NETWORKS = {
    "resnet20": (lambda: residual_cnn(16, 3), 32),
    "cnn": (lambda: residual_cnn(32, 1), 64),
    "vit": (VisionTransformer, 32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="the ResNet-20 only, and shorter timings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    names = options.networks or (["resnet20"] if options.quick else list(NETWORKS))
    if unknown := set(names).difference(NETWORKS):
        parser.error(f"no network is called {', '.join(sorted(unknown))}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (place := Path(folder) / name).mkdir()
            rows += compared(name, place, seconds=4 if options.quick else 10, turns=3)
    show(rows)
    if options.json:
        found = [{**asdict(row), "off": row.off, "holds": row.holds} for row in rows]
        options.json.write_text(json.dumps(found, indent=2))


def compared(name: str, folder: Path, seconds: float, turns: int) -> list[Row]:
    """The card of a network's fastest point, and what strangers measure of the same file."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    given = workload(make().eval(), size)
    torch.onnx.export(given.model, (given.example_input,), folder / "plain.onnx", dynamo=False)
    study = search(
        given, name="stranger", space=SPACE, budget=5, progress=False, objectives=["kl", "latency_ms"],
        storage=str(folder / "study.db"), artifacts=folder / "artifacts",
    )  # fmt: skip
    study.export(folder / "bundle", pick="fastest")
    return rows_of(name, folder, seconds, turns)


def rows_of(name: str, folder: Path, seconds: float, turns: int) -> list[Row]:
    """The card of the bundle in `folder`, and what strangers measure of it."""
    card = json.loads((folder / "bundle" / "card.json").read_text())["measurements"]
    clock = [strangers_clock(folder, seconds) for _ in range(turns)]
    tool_ms = [benchmark_app(folder / "bundle") for _ in range(turns)]
    over = "speedup, over the file as it comes"
    handed = [ratio for turn in clock for ratio in ratios(turn, "default, handed over", "bundle, handed over")]
    return [
        Row.of(name, over, card["speedup"], [r for turn in clock for r in ratios(turn, "default")], SPEEDUP_BAR),
        Row.of(name, f"{over}, inputs handed over", card["speedup"], handed, None),
        Row.of(
            name, "speedup_float32", card["speedup_float32"], [r for turn in clock for r in ratios(turn, "float32")],
            SPEEDUP_BAR,
        ),
        Row.of(name, "latency_ms, by benchmark_app", card["latency_ms"], tool_ms, LATENCY_BAR),
    ]  # fmt: skip


def ratios(turn: dict[str, list[float]], way: str, bundle: str = "bundle") -> list[float]:
    """How many times as fast each load of the bundle is as the load of the plain file next to it."""
    return [plain / own for plain, own in zip(turn[way], turn[bundle], strict=True)]


def workload(model: nn.Module, size: int) -> Workload:
    """Random images of `size` pixels, whose classes are what `model` says."""

    def images(count: int) -> TensorDataset:
        inputs = torch.randn(count, 3, size, size)
        with torch.no_grad():
            return TensorDataset(inputs, model(inputs).argmax(1))

    return Workload(model, images(64), images(32), images(64), images(32), torch.randn(1, 3, size, size))


def strangers_clock(folder: Path, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every load of the plain file, of the same in float32 and of the bundle, by a process without slimfront."""
    command = [
        sys.executable,
        HERE / "strangers_clock.py",
        folder / "plain.onnx",
        folder / "bundle",
        str(seconds),
        str(LOADS),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def benchmark_app(bundle: Path) -> float:
    """Median latency in milliseconds, by OpenVINO's own tool on the bench's core, with the settings of the bundle's run.py."""
    model = next(bundle.glob("model.*"))
    settings = bundle.parent / "settings.json"
    settings.write_text(json.dumps({"CPU": {"SNIPPETS_MODE": "DISABLE"}}))
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(model), "-d", "CPU", "-api", "sync"]
    command += ["-hint", "none", "-nthreads", "1", "-nstreams", "1", "-ip", "f32", "-t", "3", *asked_precision(model)]
    if b"DequantizeLinear" in model.read_bytes():
        command += ["-load_config", str(settings)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, bench_cores(1))
    )
    found = re.search(r"Median:\s+([\d.]+) ([mu]s)", ran.stdout)
    assert found is not None, ran.stdout
    return float(found[1]) / (1 if found[2] == "ms" else 1e3)


def asked_precision(model: Path) -> list[str]:
    """The tool's option for the precision of floats that an artifact asks for; none for the runtime's default."""
    import openvino  # here: after a search, so that nothing of it is loaded in this process before

    read, key = openvino.Core().read_model(model), ["framework", "slimfront.float_precision"]
    asked = read.get_rt_info(key).astype(str) if read.has_rt_info(key) else "float32"
    return (
        []
        if asked == "default"
        else ["-infer_precision", {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[asked]]
    )


def show(rows: list[Row]) -> None:
    table = Table("network", "figure", "card", "stranger", "luck of a load", "off", "limit", "")
    for row in rows:
        verdict = "" if row.holds is None else "holds" if row.holds else "[red]broken[/red]"
        limit = "" if row.limit is None else f"{row.limit:.0%}"
        card = f"{row.card:.3f} [{row.low:.3f}, {row.high:.3f}]"
        table.add_row(
            row.network, row.figure, card.replace("[", r"\["), f"{row.stranger:.3f}", f"{row.luck:.1%}", f"{row.off:+.1%}",
            limit, verdict,
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
