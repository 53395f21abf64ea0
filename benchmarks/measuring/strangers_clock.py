"""Times files as someone does who has never heard of slimfront: imports OpenVINO, NumPy and, of a bundle, its own run.py.

    python strangers_clock.py PLAIN.onnx BUNDLE SECONDS

PLAIN.onnx is compiled by `core.compile_model(path, "CPU")` with nothing but a number of threads, once as it comes and once in
forced float32; the bundle's model is loaded by the bundle's run.py. The three take turns on one core, and milliseconds of each
are printed as JSON: the median of the calmest third of its blocks.
"""

import gc
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino

BLOCK_SECONDS = 0.01


def plain(path: str, **hints: str) -> Callable[[np.ndarray], object]:
    """A file as OpenVINO runs it."""
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1, **hints})
    request = compiled.create_infer_request()
    return lambda inputs: request.infer([inputs], share_inputs=True, share_outputs=True)


def bundled(folder: Path) -> Callable[[np.ndarray], object]:
    """A bundle's model as its run.py runs it."""
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.load(script.file_of("model"))


def block(run: Callable[[np.ndarray], object], inputs: np.ndarray, count: int) -> float:
    """Seconds of the fastest of `count` runs, after one that finds other models in the caches."""
    run(inputs)
    fastest = float("inf")
    for _ in range(count):
        start = time.perf_counter()
        run(inputs)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def main() -> None:
    path, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    shape = json.loads((folder / "card.json").read_text())["input"]["shape"]
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    runs = {
        "default": plain(path),
        "float32": plain(path, INFERENCE_PRECISION_HINT="f32"),
        "bundle": bundled(folder),
    }
    gc.disable()
    counts = {name: max(3, round(BLOCK_SECONDS / block(run, inputs, 50))) for name, run in runs.items()}
    blocks: dict[str, list[float]] = {name: [] for name in runs}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for name, run in runs.items():
            blocks[name].append(block(run, inputs, counts[name]))
    assert not any(name.startswith("slimfront") for name in sys.modules)
    calm = {name: sorted(found)[: max(3, len(found) // 3)] for name, found in blocks.items()}
    print(json.dumps({name: statistics.median(found) * 1e3 for name, found in calm.items()}))


if __name__ == "__main__":
    main()
