"""How long a search prepares before its first trial runs, by part, how long `slimfront inspect` takes, and how much memory each process holds.

    python benchmarks/measuring/preparation.py --quick
    python benchmarks/measuring/preparation.py --json preparation.json

Each model of torchvision is searched on random weights and images until its first worker runs a trial, and inspected, by processes of their own.
The bars, on two idle cores: 60 seconds to the first trial, not counting imports, loading and the baseline's own timing and scoring; 60 seconds
of inspection; 3 times the bytes of the weights and 1.5 GB of memory in the process that searches. Printed are seconds on the clock and of
the CPU, which differ on a busy machine: work that grows with the square of the depth shows in seconds of the CPU per layer (`--quick`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MODELS = ("resnet152", "vit_b_16", "convnext_base", "efficientnet_v2_m")
QUICK = ("resnet18", "resnet50")
LONGEST_S = 60
MOST_WEIGHTS, MOST_REST = 3, 1.5e9
NOT_PREPARATION = ("imports", "loading", "timing and scoring")
"""Beginnings of the parts that the bar leaves out."""

STUDY = """
study: preparation
workload: torchvision:{model}
target: cpu-openvino
objectives: [accuracy_drop, latency_ms]
workers: 0
budget: {{trials: 2}}
workload_options: {{image_size: 224, data: {{name: random, samples: 40}}}}
"""

SEARCH = """
import json, sys, time
began = time.monotonic()
from rich.console import Console
from slimfront.search.events import Preparing, TrialStarted
from slimfront.search.run import run_search
from slimfront.studies.study_file.load import load_study

parts = [("imports", began, 0.0)]
started = 0
peaks = []

def note_peak():
    status = open("/proc/self/status").read()
    peaks.append(1024 * int(status.split("VmHWM:")[1].split()[0]))
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins again

def hear(event):
    global started
    if isinstance(event, Preparing):
        note_peak()
        parts.append((event.what, time.monotonic(), time.process_time()))
    started += isinstance(event, TrialStarted)
    if started == 2:  # the first is the uncompressed model, which no worker runs
        raise KeyboardInterrupt

try:
    run_search(load_study(sys.argv[1]), sys.argv[2], __import__("pathlib").Path(sys.argv[3]), Console(stderr=True), listeners=[hear])
except KeyboardInterrupt:
    pass
note_peak()
ends = [*parts[1:], ("", time.monotonic(), time.process_time())]
found = [(name, end - began, used - before, peak) for (name, began, before), (_, end, used), peak in zip(parts, ends, peaks)]
print(json.dumps({"parts": found, "peak_bytes": max(peaks)}))
"""

INSPECT = """
import json, resource, sys, time
began = time.monotonic()
from slimfront.studies.inspection.inspect import inspect_reference

parts = [("imports", began, 0.0)]
found = inspect_reference("torchvision:" + sys.argv[1], "cpu-openvino", lambda what: parts.append((what, time.monotonic(), time.process_time())))
ends = [*parts[1:], ("", time.monotonic(), time.process_time())]
spent = [(name, end - began, used - before) for (name, began, before), (_, end, used) in zip(parts, ends)]
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"parts": spent, "peak_bytes": peak, "parameters": found.parameters, "layers": len(found.layers), "groups": len(found.groups), "left_out": len(found.unprunable)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}, and no bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these instead")
    options = parser.parse_args()
    rows = [measured(name) for name in options.models or (QUICK if options.quick else MODELS)]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


def measured(model: str) -> dict[str, Any]:
    """Search and inspect one model, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder, "study.yaml")
        study.write_text(STUDY.format(model=model))
        searched = _run(SEARCH, str(study), f"{folder}/study.db", f"{folder}/artifacts")
    row = {"model": model, "search": searched, "inspect": _run(INSPECT, model)}
    print(json.dumps(row), flush=True)
    return row


def _run(program: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def show(rows: list[dict[str, Any]]) -> None:
    parts = Table("model", "part of a search", "seconds", "of the CPU", "peak MB")
    whole = Table("model", "layers", "groups (left out)", "to the first trial s", "CPU s", "CPU ms per layer", "inspect s", "CPU s", "search MB", "inspect MB", "allowed MB")  # fmt: skip
    for row in rows:
        search, inspect = row["search"], row["inspect"]
        own = [part for part in search["parts"] if not part[0].startswith(NOT_PREPARATION)]
        for name, seconds, used, peak in search["parts"]:
            parts.add_row(row["model"], name, f"{seconds:.1f}", f"{used:.1f}", f"{peak / 1e6:.0f}")
        spent = sum(part[2] for part in own)
        whole.add_row(
            row["model"],
            str(inspect["layers"]),
            f"{inspect['groups']} ({inspect['left_out']})",
            f"{sum(part[1] for part in own):.1f}",
            f"{spent:.1f}",
            f"{1e3 * spent / inspect['layers']:.0f}",
            f"{sum(part[1] for part in inspect['parts']):.1f}",
            f"{sum(part[2] for part in inspect['parts']):.1f}",
            *(f"{each['peak_bytes'] / 1e6:.0f}" for each in (search, inspect)),
            f"{(4 * MOST_WEIGHTS * inspect['parameters'] + MOST_REST) / 1e6:.0f}",
        )
    console = Console(width=160)
    console.print(parts)
    console.print(whole)
    print(f"bars: {LONGEST_S} s to the first trial and of an inspection, and the memory allowed")


if __name__ == "__main__":
    main()
