"""How fast one transposed convolution runs in float and between Q/DQ pairs, on OpenVINO and ONNX Runtime, by the kind of its input's grid.

    python benchmarks/compressing/transposed_convolutions.py

A layer of 64 to 32 channels doubles images of 48 pixels, on one thread. Printed are milliseconds, and what OpenVINO says it computes in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

CHANNELS, OUTPUTS, PIXELS = 64, 32, 48
GRIDS = {
    "float": None,
    "unsigned, zero point 0": np.uint8(0),
    "signed, zero point 0": np.int8(0),
    "unsigned, zero point 128": np.uint8(128),
}
"""Kind of grid of the input -> its zero point."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    runs = 20 if options.quick else 100
    images = np.random.default_rng(1).standard_normal((1, CHANNELS, PIXELS, PIXELS)).astype(np.float32)
    rows = {
        kind: (*on_openvino(zero, images, runs), on_onnxruntime(zero, images, runs)) for kind, zero in GRIDS.items()
    }
    table = Table("grid of the input", "OpenVINO, ms", "computed in", "ONNX Runtime, ms")
    for kind, (latency, precision, other) in rows.items():
        table.add_row(kind, f"{latency:.2f}", precision, f"{other:.2f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def model(zero_point: np.integer | None) -> bytes:
    """The layer after a ReLU, in float where there is no zero point, else its input and its weight on 8-bit grids."""
    weight = np.random.default_rng(0).standard_normal((CHANNELS, OUTPUTS, 4, 4)).astype(np.float32) * 0.05
    constants: dict[str, np.ndarray] = {"weight": weight}
    nodes, read, multiplied = [helper.make_node("Relu", ["input"], ["positive"])], "positive", "weight"
    if zero_point is not None:
        scale = (np.abs(weight).max((0, 2, 3)) / 127).astype(np.float32)
        constants = {
            "weight": np.rint(weight / scale[:, None, None]).astype(np.int8), "scale": scale, "zero": np.zeros(OUTPUTS, np.int8),
            "step": np.asarray(np.float32(0.03)), "origin": np.asarray(zero_point),
        }  # fmt: skip
        read, multiplied = "rounded", "multiplied"
        nodes += [
            helper.make_node("QuantizeLinear", ["positive", "step", "origin"], ["integers"]),
            helper.make_node("DequantizeLinear", ["integers", "step", "origin"], [read]),
            helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], [multiplied], axis=1),
        ]
    nodes.append(
        helper.make_node(
            "ConvTranspose", [read, multiplied], ["output"], kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4
        )
    )
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, CHANNELS, PIXELS, PIXELS]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, OUTPUTS, 2 * PIXELS, 2 * PIXELS]),
    ]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def on_openvino(zero_point: np.integer | None, images: np.ndarray, runs: int) -> tuple[float, str]:
    """Milliseconds, and the precision that OpenVINO reports of the layer."""
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model(zero_point)), "CPU", settings)
    request = compiled.create_infer_request()
    notes = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    kinds = {str(note["layerType"].astype(str)): str(note["runtimePrecision"].astype(str)) for note in notes}
    return timed(lambda: request.infer({"input": images}), runs), kinds["Deconvolution"]


def on_onnxruntime(zero_point: np.integer | None, images: np.ndarray, runs: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model(zero_point), options, providers=["CPUExecutionProvider"])
    return timed(lambda: session.run(None, {"input": images}), runs)


def timed(run: Callable[[], object], runs: int) -> float:
    """The median latency in milliseconds, after a few runs that do not count."""
    latencies = []
    for _ in range(runs + 5):
        begun = time.perf_counter()
        run()
        latencies.append((time.perf_counter() - begun) * 1000)
    return statistics.median(latencies[5:])


if __name__ == "__main__":
    main()
