"""Runs the model of this bundle as it was measured, and times it against the reference, the uncompressed model.

    python run.py

Needs numpy and the runtime that card.json names, nothing else. From other code: `run = load(file_of("model"))`, then
`outputs = run(inputs)` with inputs as card.json describes them.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], Any]
"""From one batch of float32 inputs to an array of outputs, which the next call may overwrite."""

FOLDER = Path(__file__).resolve().parent
WARM_UP_SECONDS, BLOCK_SECONDS, SECONDS = 0.1, 0.01, 2.0
MIN_PAIRS, CALM_SHARE = 24, 1 / 3


def load_openvino(path: str, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    model = core.read_model(path)
    # Whether inputs of linear layers are quantized at run time: OpenVINO would, whatever was decided.
    config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 32 if model.has_rt_info(["framework", "slimfront.dynamic"]) else 0
    if any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops()):
        config["SNIPPETS_MODE"] = "DISABLE"  # or OpenVINO 2026.4 computes nonsense for some models at small batches
    # OpenVINO picks the type of floats itself where a file asks for its default; one that asks for nothing is in float32.
    halves, floats = (["framework", f"slimfront.{key}"] for key in ("bfloat16", "float_precision"))
    asked = "bfloat16" if model.has_rt_info(halves) else "float32"  # the first key is of earlier versions
    if model.has_rt_info(floats):
        asked = model.get_rt_info(floats).astype(str)
    if asked == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        print("precision float32, measured in bfloat16: this processor would emulate it")
        asked = "float32"
    if asked != "default":
        config["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[asked]
    request = core.compile_model(model, "CPU", config).create_infer_request()
    given = request.get_input_tensor().data

    def run(inputs: np.ndarray) -> np.ndarray:
        given[:] = inputs  # handing it over at every run takes longer
        return request.infer(share_outputs=True)[0]

    return run


def load_onnxruntime(path: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Or inputs of linear layers with integer weights would be quantized at run time, whatever was decided.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {name: inputs})[0]


def load_litert(path: str, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(inputs: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given, inputs)
        interpreter.invoke()
        return interpreter.get_tensor(made)

    return run


def load_torch(path: str, threads: int, device: str = "cpu") -> Run:
    import json  # this function stands alone on a card's page

    import torch
    import torch.ao.quantization.fx._decomposed  # registers the operations of grids
    from torch.export.pt2_archive._package import load_pt2

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    archive = load_pt2(path, run_single_threaded=True)
    # Compiled ahead of time, or a program to be run as it is.
    model = archive.aoti_runners.get("model") or archive.exported_programs["model"].module(check_guards=False)
    asked = json.loads(archive.extra_files["slimfront.json"]).get("float_precision", "float32")

    def run(inputs: np.ndarray) -> np.ndarray:
        if device == "cuda":  # where torch by default rounds what convolutions multiply to TF32; float32 is float32
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = asked == "default", False
        return model(torch.from_numpy(inputs).to(device)).cpu().numpy()

    return run


def load_torch_cuda(path: str, threads: int) -> Run:
    return load_torch(path, threads, "cuda")


def load_tensorrt(path: str, threads: int) -> Run:
    import tensorrt  # pyright: ignore[reportMissingImports]  # there only with a GPU
    import torch  # for memory on the GPU

    with open(path, "rb") as file:
        engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING)).deserialize_cuda_engine(file.read())
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    ends = {}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        tensor = torch.empty(tuple(engine.get_tensor_shape(name)), device="cuda")
        context.set_tensor_address(name, tensor.data_ptr())
        ends[engine.get_tensor_mode(name)] = tensor
    given, made = ends[tensorrt.TensorIOMode.INPUT], ends[tensorrt.TensorIOMode.OUTPUT]

    def run(inputs: np.ndarray) -> np.ndarray:
        given.copy_(torch.from_numpy(inputs))
        torch.cuda.current_stream().synchronize()
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        stream.synchronize()
        return made.cpu().numpy()

    return run


LOADERS: dict[str, Callable[[str, int], Run]] = {
    "openvino": load_openvino,
    "onnxruntime": load_onnxruntime,
    "litert": load_litert,
    "torch": load_torch,
    "torch-cuda": load_torch_cuda,
    "tensorrt": load_tensorrt,
}


def card() -> dict[str, Any]:
    """What this bundle says of itself."""
    return json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))


def file_of(stem: str) -> str:
    """The bundle's file of that name, whatever its suffix."""
    return next(name for name in card()["files"] if name.startswith(f"{stem}."))


def load(name: str) -> Run:
    """A model of this bundle, with the settings it was measured with, and no more threads than cores."""
    target = card()["target"]
    return LOADERS[target["runtime"]](str(FOLDER / name), min(target["threads"], cores()))


def cores() -> int:
    """How many cores this process may use: more threads than that would spin for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pin(threads: int) -> None:
    """Keep this process, and so the runtime's threads, on as many cores as it has threads, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def paired_times(model: Run, reference: Run, inputs: np.ndarray) -> list[tuple[float, float]]:
    """Seconds per run of (model, reference), in neighbouring blocks, so that what disturbs one disturbs the other."""
    model_runs, reference_runs = warm_up(model, inputs), warm_up(reference, inputs)
    pairs = []
    gc.collect()
    gc.disable()
    deadline = time.perf_counter() + SECONDS
    while len(pairs) < MIN_PAIRS or time.perf_counter() < deadline:
        pairs.append((block(model, inputs, model_runs), block(reference, inputs, reference_runs)))
        pairs.append((block(reference, inputs, reference_runs), block(model, inputs, model_runs))[::-1])
    gc.enable()
    return pairs


def calmest(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The third of the pairs whose two halves were fastest together: what the undisturbed machine does."""
    return sorted(pairs, key=math.prod)[: max(MIN_PAIRS // 2, round(len(pairs) * CALM_SHARE))]


def warm_up(run: Run, inputs: np.ndarray) -> int:
    """Run until caches and clocks have settled; returns how many runs fill a block."""
    start, runs = time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - start < WARM_UP_SECONDS:
        run(inputs)
        runs += 1
    return max(3, round(BLOCK_SECONDS * runs / (time.perf_counter() - start)))


def block(run: Run, inputs: np.ndarray, runs: int) -> float:
    """Seconds of the fastest of so many runs, after one that finds the other model in the caches."""
    run(inputs)
    fastest = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        run(inputs)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def median_interval(values: list[float]) -> tuple[float, float]:
    """About 95 % interval of the median, from the order statistics by the normal approximation."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    middle = (len(values) - 1) / 2
    return ordered[max(0, int(middle - half))], ordered[min(len(values) - 1, round(middle + half + 0.5))]


def main() -> None:
    about = card()
    threads = about["target"]["threads"]
    pin(threads)
    if cores() < threads:
        print(f"threads   {cores()}, measured with {threads}: this process may use no more cores")
    model, reference = load(file_of("model")), load(file_of("reference"))
    inputs = np.random.default_rng(0).standard_normal(about["input"]["shape"], dtype=np.float32)
    print(f"outputs   {list(model(inputs).shape)} of inputs {list(inputs.shape)}")
    pairs = calmest(paired_times(model, reference, inputs))
    ratios = [reference / model for model, reference in pairs]
    low, high = median_interval(ratios)
    print(
        f"speedup   {statistics.median(ratios):.4g}  ({low:.4g} to {high:.4g}, median of the {len(pairs)} calmest pairs)"
    )
    recorded = about["measurements"]["speedup"]
    print(f"recorded  {recorded['value']:.4g}  ({recorded['low']:.4g} to {recorded['high']:.4g})")
    model_ms, reference_ms = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    print(f"latency   {model_ms:.4g} ms, uncompressed {reference_ms:.4g} ms, here and now")


if __name__ == "__main__":
    main()
