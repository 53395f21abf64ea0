"""Runs the model of this bundle as it was measured, and times it against the reference, the uncompressed model.

    python run.py

Needs numpy and the runtime that card.json names, nothing else. From other code: `run = load(file_of("model"))`, then
`outputs = run({"input": array})`, with the names, shapes and types of arrays that card.json describes.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Without this OpenVINO sends usage statistics at each import.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
"""From one batch of inputs by name to outputs by name, which the next call may overwrite."""

FOLDER = Path(__file__).resolve().parent
WARM_UP_SECONDS, BLOCK_SECONDS, SECONDS = 0.1, 0.01, 2.0
MIN_PAIRS, CALM_SHARE = 24, 1 / 3


def load_openvino(path: str, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    request = core.compile_model(model, "CPU", _openvino_config(core, model, threads)).create_infer_request()
    given = {tensor.get_any_name(): request.get_tensor(tensor).data for tensor in model.inputs}
    made = [tensor.get_any_name() for tensor in model.outputs]

    def run(inputs: Arrays) -> Arrays:
        for name, array in inputs.items():
            if given[name].shape != array.shape:  # another size along a dynamic axis
                request.get_tensor(name).shape = array.shape
                given[name] = request.get_tensor(name).data
            given[name][:] = array  # handing it over at every run takes longer
        results = request.infer(share_outputs=True)
        return {name: np.asarray(results[index]) for index, name in enumerate(made)}

    return run


def _openvino_config(core: Any, model: Any, threads: int) -> dict[str, Any]:
    """The settings that the file was measured with."""
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
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
    return config


def load_onnxruntime(path: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Or inputs of linear layers with integer weights would be quantized at run time, whatever was decided.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    made = [tensor.name for tensor in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return {name: np.asarray(array) for name, array in zip(made, session.run(None, inputs), strict=True)}

    return run


def load_litert(path: str, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    signature, *_ = interpreter._get_full_signature_list().values()  # which has the tensors' names

    def run(inputs: Arrays) -> Arrays:
        for name, array in inputs.items():
            interpreter.set_tensor(signature["inputs"][name], array)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in signature["outputs"].items()}

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
    notes = json.loads(archive.extra_files["slimfront.json"])
    asked = notes.get("float_precision", "float32")
    made = [name for name, *_ in notes.get("outputs", [["output"]])]  # which older archives do not name

    def run(inputs: Arrays) -> Arrays:
        if device == "cuda":  # where torch by default rounds what convolutions multiply to TF32; float32 is float32
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = asked == "default", False
        given = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
        results = model(given["input"] if list(given) == ["input"] else given)
        tensors = results.values() if isinstance(results, dict) else [results]
        return {name: tensor.cpu().numpy() for name, tensor in zip(made, tensors, strict=True)}

    return run


def load_torch_cuda(path: str, threads: int) -> Run:
    return load_torch(path, threads, "cuda")


def load_tensorrt(path: str, threads: int) -> Run:
    import tensorrt  # pyright: ignore[reportMissingImports]  # there only with a GPU
    import torch  # for memory on the GPU

    with open(path, "rb") as file:
        engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING)).deserialize_cuda_engine(file.read())
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    given, made = {}, {}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        dtype = torch.from_numpy(np.empty(0, tensorrt.nptype(engine.get_tensor_dtype(name)))).dtype
        tensor = torch.empty(tuple(engine.get_tensor_shape(name)), dtype=dtype, device="cuda")
        context.set_tensor_address(name, tensor.data_ptr())
        is_input = engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT
        (given if is_input else made)[name] = tensor

    def run(inputs: Arrays) -> Arrays:
        for name, array in inputs.items():
            given[name].copy_(torch.from_numpy(array))
        torch.cuda.current_stream().synchronize()
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        stream.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in made.items()}

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


def load(name: str) -> Callable[..., Any]:
    """A model of this bundle, with the settings it was measured with, and no more threads than cores.

    From arrays by name it makes arrays by name, and from the array of a single input the array of its first output.
    """
    about = card()
    run = LOADERS[about["target"]["runtime"]](str(FOLDER / name), min(about["target"]["threads"], cores()))

    def run_any(inputs: Any) -> Any:
        if isinstance(inputs, np.ndarray):
            return run({about["input"]["name"]: inputs})[about["output"]["name"]]
        return run(inputs)

    return run_any


def cores() -> int:
    """How many cores this process may use: more threads than that would spin for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pin(threads: int) -> None:
    """Keep this process, and so the runtime's threads, on as many cores as it has threads, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def paired_times(model: Run, reference: Run, inputs: Arrays) -> list[tuple[float, float]]:
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


def warm_up(run: Run, inputs: Arrays) -> int:
    """Run until caches and clocks have settled; returns how many runs fill a block."""
    start, runs = time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - start < WARM_UP_SECONDS:
        run(inputs)
        runs += 1
    return max(3, round(BLOCK_SECONDS * runs / (time.perf_counter() - start)))


def block(run: Run, inputs: Arrays, runs: int) -> float:
    """Seconds of the fastest of so many runs, after one that finds the other model in the caches."""
    run(inputs)
    fastest = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        run(inputs)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def made_up(inputs: list[dict[str, Any]], sizes: dict[str, int]) -> Arrays:
    """Random floats, and ones for what counts, names or masks things.

    `sizes` are those of dynamic axes, by their names.
    """
    draw, arrays = np.random.default_rng(0), {}
    for each in inputs:
        shape: list[int] = list(each["shape"])
        for axis, name in each.get("axes", {}).items():
            shape[int(axis)] = sizes.get(name, shape[int(axis)])
        is_float = each["dtype"].startswith("float")
        arrays[each["name"]] = (draw.standard_normal(shape) if is_float else np.ones(shape)).astype(each["dtype"])
    return arrays


def batches(about: dict[str, Any]) -> list[tuple[float, Arrays]]:
    """(weight, inputs) of each shape that was timed."""
    found = []
    for shape in about["target"].get("shapes") or [{}]:
        sizes = {name: size for name, size in shape.items() if name != "weight"}
        found.append((shape.get("weight", 1), made_up(about["inputs"], sizes)))
    return found


def shapes(arrays: Arrays) -> str:
    """The shape of a single array, or each by its name."""
    named = [f"{name} {list(array.shape)}" for name, array in arrays.items()]
    return ", ".join(named) if len(named) > 1 else named[0].partition(" ")[2]


def median_interval(values: list[float]) -> tuple[float, float]:
    """About 95 % interval of the median, from the order statistics by the normal approximation."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    middle = (len(values) - 1) / 2
    return ordered[max(0, int(middle - half))], ordered[min(len(values) - 1, round(middle + half + 0.5))]


def milliseconds(model: Run, reference: Run, inputs: Arrays) -> np.ndarray:
    """Of the reference, and of the model by the median of the paired ratios and by the ends of its interval."""
    pairs = calmest(paired_times(model, reference, inputs))
    ratios = [reference_s / model_s for model_s, reference_s in pairs]
    reference_ms = statistics.median(reference_s for _, reference_s in pairs) * 1e3
    return np.array(
        [reference_ms, *(reference_ms / ratio for ratio in (statistics.median(ratios), *median_interval(ratios)))]
    )


def main() -> None:
    about = card()
    threads = about["target"]["threads"]
    pin(threads)
    if cores() < threads:
        print(f"threads   {cores()}, measured with {threads}: this process may use no more cores")
    model, reference = load(file_of("model")), load(file_of("reference"))
    times, whole = np.zeros(4), 0.0
    for weight, inputs in batches(about):
        print(f"outputs   {shapes(model(inputs))} of inputs {shapes(inputs)}")
        of_shape = milliseconds(model, reference, inputs)
        times, whole = times + weight * of_shape, whole + weight
    speedup, low, high = times[0] / times[1:]  # of several shapes, the ratio of the weighted means
    print(f"speedup   {speedup:.4g}  ({low:.4g} to {high:.4g}, median of the calmest pairs)")
    recorded = about["measurements"]["speedup"]
    print(f"recorded  {recorded['value']:.4g}  ({recorded['low']:.4g} to {recorded['high']:.4g})")
    print(f"latency   {times[1] / whole:.4g} ms, uncompressed {times[0] / whole:.4g} ms, here and now")


if __name__ == "__main__":
    main()
