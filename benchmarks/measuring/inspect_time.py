"""How long `slimfront inspect torchvision:MODEL --target cpu-openvino` takes, and what it finds.

    python benchmarks/measuring/inspect_time.py --quick
    python benchmarks/measuring/inspect_time.py --json inspect_time.json

Each model is inspected by a process of its own on random images, imports included; the bar is 60 seconds. Printed are seconds on the clock and
of the CPU, which differ on a busy machine, and the layers, groups and blocks found, those left out, and how far channels can take parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

MODELS = (
    "resnet50", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0", "squeezenet1_1",
    "regnet_y_400mf", "convnext_tiny", "vit_b_32", "swin_t", "googlenet", "resnext50_32x4d",
)  # fmt: skip
QUICK = ("resnet50", "mobilenet_v3_small", "vit_b_32")
LONGEST_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these instead")
    options = parser.parse_args()
    rows = [inspected(name) for name in options.models or (QUICK if options.quick else MODELS)]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


def inspected(name: str) -> dict[str, object]:
    """Inspect one model in a process of its own."""
    command = [sys.executable, "-m", "slimfront", "inspect", f"torchvision:{name}", "--target", "cpu-openvino"]
    cpu, start = children_cpu_s(), time.perf_counter()
    done = subprocess.run(
        [*command, "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(done.stdout)
    gain = next(gain for gain in found["gains"] if (gain["technique"], gain["metric"]) == ("channels", "parameters"))
    row = {
        "model": name,
        "wall_s": time.perf_counter() - start,
        "cpu_s": children_cpu_s() - cpu,
        "layers": len(found["layers"]),
        "skipped": len(found["skipped"]),
        "groups": len(found["groups"]),
        "unprunable": len(found["unprunable"]),
        "blocks": len(found["blocks"]),
        "parameters_bound": gain["before"] / gain["after"],
    }
    print(json.dumps(row), flush=True)
    return row


def children_cpu_s() -> float:
    """Seconds of the CPU that ended children took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def show(rows: list[dict[str, object]]) -> None:
    table = Table(
        "model", "seconds", "of the CPU", "layers (skipped)", "groups (left out)", "blocks", "fewest parameters"
    )
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['wall_s']:.1f}",
            f"{row['cpu_s']:.1f}",
            f"{row['layers']} ({row['skipped']})",
            f"{row['groups']} ({row['unprunable']})",
            str(row["blocks"]),
            f"{row['parameters_bound']:.2f}x fewer",
        )
    Console().print(table)
    print(f"{sum(row['wall_s'] <= LONGEST_S for row in rows)} of {len(rows)} within {LONGEST_S} s")


if __name__ == "__main__":
    main()
