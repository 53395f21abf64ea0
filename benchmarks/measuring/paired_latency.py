"""How far a latency can be believed: spread of raw medians and of paired ratios.

Times the int8 digits model against the float one, again and again, on a quiet machine and next to a process that hammers
memory on another core. For each it prints the coefficient of variation of the raw median and of the speed-up, and the
speed-up's bias against the quiet value. `--quick` takes under two minutes.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from slimfront.compression.quantization.quantize import quantize
from slimfront.hardware_profiles.bench.bench import worker_cores
from slimfront.hardware_profiles.bench.paired_timing import PairedTiming
from slimfront.hardware_profiles.runtimes.registry import runtimes
from slimfront.search.trials.baseline import lower_reference
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.spaces.policies.candidate import Candidate
from slimfront.studies.study_file.load import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 repeats instead of 12")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--runtime", choices=runtimes(), default="openvino")
    options = parser.parse_args()
    repeats = 6 if options.quick else 12
    spec = load_study("digits-demo").model_copy(update={"target": f"cpu-{options.runtime}"})
    prepared = prepare(spec)
    with tempfile.TemporaryDirectory() as folder:
        quiet, hammered = measure(prepared, Path(folder), repeats)
    figures = {"quiet": summary(quiet, quiet), "hammered": summary(hammered, quiet)}
    show(figures, repeats)
    if options.json:
        options.json.write_text(json.dumps({"runtime": options.runtime, "repeats": repeats, **figures}, indent=2))


def measure(prepared: PreparedStudy, folder: Path, repeats: int) -> tuple[list[PairedTiming], list[PairedTiming]]:
    """Timings on the quiet machine, and next to a hammering process."""
    reference = lower_reference(prepared.context, folder / "reference")
    candidate = int8_artifact(prepared, folder)
    with prepared.bench(reference) as bench:
        quiet = [bench.time(candidate) for _ in range(repeats)]
        process = multiprocessing.Process(target=hammer, args=(worker_cores(prepared.target.threads),), daemon=True)
        process.start()
        try:
            return quiet, [bench.time(candidate) for _ in range(repeats)]
        finally:
            process.kill()


def int8_artifact(prepared: PreparedStudy, folder: Path) -> Path:
    """The digits model with every layer at 8 bits."""
    policy = prepared.space.anchors()[1]
    workload = prepared.context.workload
    quantization = quantize(workload.model, workload.example_input, policy, workload.calibration)
    candidate = Candidate(policy, workload.model, quantization)
    path = folder / "int8.onnx"
    return prepared.context.runtime.lower(candidate, workload.example_input, prepared.target, path).path


def hammer(cores: list[int]) -> None:
    """Copy memory for ever on other cores than the bench's."""
    os.sched_setaffinity(0, cores)
    source = np.ones(64 * 2**20 // 8)
    target = np.empty_like(source)
    while True:
        np.copyto(target, source)


def summary(timings: list[PairedTiming], quiet: list[PairedTiming]) -> dict[str, float]:
    """Medians, coefficients of variation, and bias against the quiet machine, as fractions."""
    speedups = [timing.speedup for timing in timings]
    raw = [timing.candidate_ms for timing in timings]
    return {
        "raw_median_ms": statistics.median(raw),
        "raw_cv": statistics.stdev(raw) / statistics.mean(raw),
        "raw_bias": statistics.median(raw) / statistics.median(timing.candidate_ms for timing in quiet) - 1,
        "speedup": statistics.median(speedups),
        "speedup_cv": statistics.stdev(speedups) / statistics.mean(speedups),
        "speedup_bias": statistics.median(speedups) / statistics.median(timing.speedup for timing in quiet) - 1,
    }


def show(figures: dict[str, dict[str, float]], repeats: int) -> None:
    table = Table("machine", "raw median", "its CV", "its bias", "paired speed-up", "its CV", "its bias")
    for machine, figure in figures.items():
        table.add_row(
            machine,
            f"{figure['raw_median_ms']:.3f} ms",
            f"{figure['raw_cv']:.1%}",
            f"{figure['raw_bias']:+.1%}",
            f"{figure['speedup']:.3f}",
            f"{figure['speedup_cv']:.1%}",
            f"{figure['speedup_bias']:+.1%}",
        )
    Console().print(table, f"{repeats} repeats each")


if __name__ == "__main__":
    main()
