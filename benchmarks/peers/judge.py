"""The judge: how fast, accurate and large model files are as OpenVINO runs them on one core, against a reference file.

It imports openvino and numpy alone, nothing that any contestant is made with:

    python judge.py reference.onnx data.npz points.json judged.json

`points.json` is a list of objects with a "file" and, where its maker says how it is to be run, a "config" of OpenVINO properties;
everything else in them is passed on. Accuracy is that of the split "test" in `data.npz`; without the split nothing is scored. A
point's speed is the median of paired ratios: reference and point run in turns, one block of each, on the one core that the
process is pinned to. One load of a file is up to 2 % faster than the next: each file is loaded `LOADS` times, and every load of
one meets every load of the other. The reference runs as OpenVINO runs it by default, only the number of threads set.
"""

import argparse
import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

BLOCK_SECONDS = 0.0005  # less than a scheduler lets another process run for
LOADS = 3
CONFIG = {"INFERENCE_NUM_THREADS": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("points", type=Path)
    parser.add_argument("judged", type=Path)
    parser.add_argument("--rounds", type=int, default=401, help="pairs of blocks for each point")
    options = parser.parse_args()
    points = json.loads(options.points.read_text())
    judged = judge(options.reference, options.data, points, options.rounds)
    options.judged.write_text(json.dumps(judged, indent=1))


def judge(reference: Path, data: Path, points: list[dict[str, Any]], rounds: int = 401) -> dict[str, Any]:
    """Judge every point; pins this process to one core.

    Returns:
        "reference": its accuracy, bytes and milliseconds; "points": each with accuracy, drop in points, bytes, ratio of bytes,
        speedup with its 95 % interval and that of each load, and milliseconds; or only why OpenVINO "refused" its file.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with np.load(data) as splits:
        images, classes = splits["test_x"], splits["test_y"]
    base = [load(reference) for _ in range(LOADS)]
    whole = {"accuracy": accuracy(base[0], images, classes), "bytes": size(reference)}
    whole["ms"] = 1e3 * float(np.median([block_times(request, images[:1], 1, rounds) for request in base]))
    judged = []
    for point in points:
        try:
            model = [load(Path(point["file"]), point.get("config", {})) for _ in range(LOADS)]
        except RuntimeError as error:  # a result of its maker's, too
            judged.append({**point, "refused": str(error).strip().splitlines()[-1]})
            continue
        speed = paired(base, model, images[:1], rounds)
        found = {"bytes": size(Path(point["file"])), **speed, "ms": whole["ms"] / speed["speedup"]}
        if point.get("scored", True):
            found["accuracy"] = accuracy(model[0], images, classes)
            found["drop"] = 100 * (whole["accuracy"] - found["accuracy"])
        judged.append({**point, **found, "size": found["bytes"] / whole["bytes"]})
    return {"reference": whole, "points": judged}


def load(path: Path, config: dict[str, Any] | None = None) -> ov.InferRequest:
    """A file compiled for one thread, otherwise as OpenVINO pleases or as `config` says."""
    core = ov.Core()
    return core.compile_model(core.read_model(path), "CPU", {**CONFIG, **(config or {})}).create_infer_request()


def size(path: Path) -> int:
    """Bytes on disk, of the weights in a file of their own too."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" else 0)


def accuracy(model: ov.InferRequest, images: np.ndarray, classes: np.ndarray) -> float:
    """The fraction of images whose highest output is their class, one image at a time."""
    right = 0
    for index, label in enumerate(classes):
        right += int(model.infer([images[index : index + 1]])[0].argmax() == label)
    return right / len(classes)


def paired(
    base: list[ov.InferRequest], model: list[ov.InferRequest], image: np.ndarray, rounds: int
) -> dict[str, float | list[float]]:
    """The median of paired ratios of times, the order statistics that enclose it 95 times in 100, and the median of each load."""
    for request in (*base, *model):
        block_times(request, image, 1, 50)  # until caches are warm and the clock is up
    base_runs, model_runs = (
        max(1, round(BLOCK_SECONDS / float(np.median(block_times(request, image, 1, 20)))))
        for request in (base[0], model[0])
    )
    gc.disable()
    ratios = np.array([
        block_times(base[index // len(model) % len(base)], image, base_runs, 1)[0]
        / block_times(model[index % len(model)], image, model_runs, 1)[0]
        for index in range(rounds)
    ])  # fmt: skip
    gc.enable()
    ordered = np.sort(ratios)
    margin = int(np.ceil(0.98 * np.sqrt(rounds)))  # 1.96 standard deviations of the median's rank, sqrt(n) / 2 each
    low, high = max(0, rounds // 2 - margin), min(rounds - 1, rounds // 2 + margin)
    loads = [float(np.median(ratios[first :: len(model)])) for first in range(len(model))]
    return {
        "speedup": float(np.median(ratios)), "low": float(ordered[low]), "high": float(ordered[high]), "loads": loads,
    }  # fmt: skip


def block_times(request: ov.InferRequest, image: np.ndarray, runs: int, blocks: int) -> list[float]:
    """Seconds a run, of each of so many blocks of runs; one before them finds another file in the caches and does not count."""
    request.set_input_tensor(ov.Tensor(image, shared_memory=True))
    request.infer()
    found = []
    for _ in range(blocks):
        started = time.perf_counter()
        for _ in range(runs):
            request.infer()
        found.append((time.perf_counter() - started) / runs)
    return found


if __name__ == "__main__":
    main()
