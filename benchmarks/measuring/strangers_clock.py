"""Times files as someone does who has never heard of slimfront: imports OpenVINO, NumPy and, of a bundle, its own run.py.

    python strangers_clock.py PLAIN.onnx BUNDLE SECONDS LOADS

PLAIN.onnx is compiled by OpenVINO with nothing but a number of threads, as it comes ("default") and in forced float32
("float32"); the bundle's model with the settings of its run.py ("bundle"). Inputs are in the model's own tensor, as OpenVINO's
tool has them. Twice more inputs are handed over and outputs taken at each run: by the bundle's run.py ("bundle, handed over"),
and in the same way of the plain file ("default, handed over"). `request.infer([array])` would take 25 to 70 us longer: a file
called by it seems slower than one that is not. Each is loaded LOADS times; all loads take turns on one core. Milliseconds of
each load are printed as JSON: the median of the calmest third of its blocks.
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
from typing import Any

import numpy as np
import openvino

BLOCK_SECONDS = 0.01


Run = Callable[[np.ndarray], object]


def in_place(request: openvino.InferRequest, inputs: np.ndarray) -> Run:
    """Runs of inputs that are where the model reads them."""
    request.get_input_tensor(0).data[:] = inputs
    return lambda _: request.infer(share_outputs=True)


def handed_over(request: openvino.InferRequest) -> Run:
    """Runs that copy their input to where the model reads it, and take an array out, as run.py does."""
    given = request.get_input_tensor(0).data

    def run(inputs: np.ndarray) -> object:
        given[:] = inputs
        return np.asarray(request.infer(share_outputs=True)[0])

    return run


def plain(path: str, **hints: str) -> openvino.InferRequest:
    """A file as OpenVINO runs it."""
    try:
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1, **hints})
    except RuntimeError:
        if hints or "ONEDNN_MAX_CPU_ISA" not in os.environ:
            raise
        # It takes bfloat16 because the processor has it, although the limited kernels do not; a processor without takes float32.
        return plain(path, INFERENCE_PRECISION_HINT="f32")
    return compiled.create_infer_request()


def bundled(script: Any) -> openvino.InferRequest:
    """A bundle's model with the settings of its run.py."""
    core = openvino.Core()
    model = core.read_model(script.FOLDER / script.file_of("model"))
    return core.compile_model(model, "CPU", script._openvino_config(core, model, 1)).create_infer_request()


def script_of(folder: Path) -> Any:
    """A bundle's run.py."""
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def block(run: Run, inputs: np.ndarray, count: int) -> float:
    """Seconds of the fastest of `count` runs, after one that finds other models in the caches."""
    run(inputs)
    fastest = float("inf")
    for _ in range(count):
        start = time.perf_counter()
        run(inputs)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def calm_ms(blocks: list[float]) -> float:
    """Milliseconds of the calmest third of blocks."""
    return statistics.median(sorted(blocks)[: max(3, len(blocks) // 3)]) * 1e3


def main() -> None:
    path, folder, seconds, loads = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    shape = json.loads((folder / "card.json").read_text())["input"]["shape"]
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    script = script_of(folder)
    ways: dict[str, Callable[[], Run]] = {
        "default": lambda: in_place(plain(path), inputs),
        "float32": lambda: in_place(plain(path, INFERENCE_PRECISION_HINT="f32"), inputs),
        "bundle": lambda: in_place(bundled(script), inputs),
        "default, handed over": lambda: handed_over(plain(path)),
        "bundle, handed over": lambda: script.load(script.file_of("model")),
    }
    runs = [(name, load()) for _ in range(loads) for name, load in ways.items()]
    gc.disable()
    counts = [max(3, round(BLOCK_SECONDS / block(run, inputs, 50))) for _, run in runs]
    blocks: list[list[float]] = [[] for _ in runs]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for (_, run), count, found in zip(runs, counts, blocks, strict=True):
            found.append(block(run, inputs, count))
    assert not any(name.startswith("slimfront") for name in sys.modules)
    found = {way: [calm_ms(each) for (name, _), each in zip(runs, blocks, strict=True) if name == way] for way in ways}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
