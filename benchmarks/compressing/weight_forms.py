"""How 4- and 8-bit weights can be written in an ONNX file, and what each form costs on OpenVINO and ONNX Runtime.

    python benchmarks/compressing/weight_forms.py --quick
    python benchmarks/compressing/weight_forms.py --json forms.json

Eight linear layers of 1024 inputs and outputs with ReLU between them, groups of 128 inputs, symmetric, in float32 on one thread.
Printed are the file's MiB and the quickest of 15 runs in milliseconds, for many rows of inputs and for one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH, GROUP = 1024, 128
FORMS = ("float32", "DequantizeLinear", "Cast", "MatMulNBits")
Built = tuple[list[NodeProto], list[TensorProto]]


def layer(form: str, bits: int, read: str, made: str, weight: np.ndarray) -> Built:
    """Nodes and constants that multiply `read` by `weight` [in, out]."""
    if form == "float32":
        return [helper.make_node("MatMul", [read, f"{made}.w"], [made])], [numpy_helper.from_array(weight, f"{made}.w")]
    groups = weight.T.reshape(WIDTH, -1, GROUP)  # [out, groups, inputs]
    scale = np.abs(groups).max(2) / (2 ** (bits - 1) - 1)
    integers = np.rint(groups / scale[..., None]).astype(np.int64)
    stored = numpy_helper.from_array(scale, f"{made}.scale")
    if form == "MatMulNBits":
        values = (integers + 2 ** (bits - 1)).astype(np.uint8)
        packed = values if bits == 8 else values[..., ::2] | values[..., 1::2] << 4
        size = {"K": WIDTH, "N": WIDTH, "bits": bits, "block_size": GROUP, "accuracy_level": 1}
        node = helper.make_node(
            "MatMulNBits", [read, f"{made}.q", f"{made}.scale"], [made], domain="com.microsoft", **size
        )
        return [node], [stored, numpy_helper.from_array(packed, f"{made}.q")]
    if form == "DequantizeLinear":
        rows = integers.reshape(WIDTH, WIDTH).T
        stored = numpy_helper.from_array(np.ascontiguousarray(scale.T), f"{made}.scale")
        made_weight = [
            helper.make_node(
                "DequantizeLinear", [f"{made}.q", f"{made}.scale"], [f"{made}.w"], axis=0, block_size=GROUP
            )
        ]
        constants = [stored, signed(f"{made}.q", rows, bits)]
    else:
        stored = numpy_helper.from_array(scale[..., None], f"{made}.scale")
        made_weight = [
            helper.make_node("Cast", [f"{made}.q"], [f"{made}.float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{made}.float", f"{made}.scale"], [f"{made}.scaled"]),
            helper.make_node("Reshape", [f"{made}.scaled", f"{made}.shape"], [f"{made}.joined"]),
            helper.make_node("Transpose", [f"{made}.joined"], [f"{made}.w"], perm=[1, 0]),
        ]
        shape = numpy_helper.from_array(np.array([WIDTH, WIDTH]), f"{made}.shape")
        constants = [stored, shape, signed(f"{made}.q", integers, bits)]
    return [*made_weight, helper.make_node("MatMul", [read, f"{made}.w"], [made])], constants


def signed(name: str, integers: np.ndarray, bits: int) -> TensorProto:
    """A constant of 8 bits, or of 4 that are packed two to a byte."""
    if bits == 8:
        return numpy_helper.from_array(integers.astype(np.int8), name)
    values = (integers.ravel() & 15).astype(np.uint8)
    packed = (values[::2] | values[1::2] << 4).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, integers.shape, packed, raw=True)


def network(form: str, bits: int, layers: int, rows: int, path: Path) -> None:
    """Write the file of one form."""
    draw, nodes, constants, read = np.random.default_rng(0), [], [], "input"
    for index in range(layers):
        weight = (draw.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        built, stored = layer(form, bits, read, f"layer{index}", weight)
        nodes += [*built, helper.make_node("Relu", [f"layer{index}"], [f"relu{index}"])]
        constants += stored
        read = f"relu{index}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, rows, WIDTH]) for name in ("input", read)]
    graph = helper.make_graph(nodes, form, ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def loaded(runtime: str, path: Path, inputs: np.ndarray) -> Callable[[], object]:
    """A run of the file on one thread, in float32."""
    if runtime == "openvino":
        settings = {"INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda: request.infer([inputs], share_inputs=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda: session.run(None, {"input": inputs})


def quickest_ms(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(16):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two layers instead of eight")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options, found = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        for form, bits in [("float32", 32), *((form, bits) for form in FORMS[1:] for bits in (8, 4))]:
            row = {"form": form, "bits": bits}
            for rows in (197, 1):
                path = Path(folder) / f"{form}{bits}.onnx"
                network(form, bits, 2 if options.quick else 8, rows, path)
                inputs = np.random.default_rng(1).standard_normal((1, rows, WIDTH)).astype(np.float32)
                row["mib"] = path.stat().st_size / 2**20
                for runtime in ("openvino", "onnxruntime"):
                    row[f"{runtime}_{rows}_ms"] = quickest_ms(loaded(runtime, path, inputs))
            found.append(row)
            print(
                "  ".join(
                    f"{key} {value:.2f}" if isinstance(value, float) else str(value) for key, value in row.items()
                )
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
