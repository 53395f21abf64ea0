"""ONNX Runtime on a CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors  # type: ignore[attr-defined]

from ....core.errors import LoweringError
from ....spaces.policies.float_precision import FLOAT32, FloatPrecision, FloatType
from ...cards.target import Target
from ..base import Artifact, Signature
from ..node_names import RECURRENT, layer_of
from .options import LoweringOptions
from .signature import onnx_signature

if TYPE_CHECKING:
    from ....core.batch import Batch
    from ....spaces.policies.candidate import Candidate

INTEGER_TYPES = (
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "MatMulInteger",
    "ConvInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
)
FLOAT_TYPES = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits", *RECURRENT)
REFUSALS = (
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)
"""The errors that ONNX Runtime raises for a file that it cannot load; they have no common base."""

ERRORS_ONLY = 3
"""ONNX Runtime's log severity: its warnings are about graph optimisations, which do not concern the user."""

FLOAT_ACTIVATIONS = ("session.qdq_matmulnbits_accuracy_level", "1")
"""The precision in which MatMulNBits, a linear layer with integer weights, computes: 1 is float32. By default ONNX Runtime takes
int8 and quantizes the layer's input, whatever the policy says."""

GROUP_KERNELS = (4,)
"""Bits of MatMulNBits that take no longer than float32; at 8 bits it takes seven times as long for one row of inputs."""

OPTIONS = LoweringOptions(
    bound_float_layers=True,  # it quantizes the weight of a convolution between two integer tensors whatever the policy says
    integer_biases=True,
    integer_products=True,
    folded_weights=True,
    group_kernels=GROUP_KERNELS,
    dynamic_lstm=True,
)
"""How ONNX Runtime's files are written."""


class OnnxRuntime:
    """See `Runtime`."""

    name = "onnxruntime"
    suffix = ".onnx"

    def version(self) -> str:
        return onnxruntime.__version__

    def float_precisions(self, target: Target) -> tuple[FloatPrecision, ...]:
        return (FLOAT32,)

    def default_float_precision(self, target: Target) -> FloatType:
        return FLOAT32

    def lower(self, candidate: Candidate, example_input: Batch, target: Target, path: Path) -> Artifact:
        from .lowering import lower  # imports torch, which sessions do without

        return Artifact.of(lower(candidate, example_input, target.batch, path, OPTIONS))

    def signature(self, artifact: Path) -> Signature:
        return onnx_signature(artifact)

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(artifact, threads or target.threads)


class OnnxRuntimeSession:
    """See `Session`."""

    def __init__(self, artifact: Path, threads: int) -> None:
        self._artifact, self._threads = artifact, threads
        self._session = _open(artifact, self._options())
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = cast("list[np.ndarray]", self._session.run(None, inputs))
        return dict(zip(self._outputs, results, strict=True))

    def executed_precisions(self) -> dict[str, str]:
        precisions: dict[str, str] = {}
        for node in self._optimised_nodes():
            if node.op_type in INTEGER_TYPES + FLOAT_TYPES and (layer := layer_of(node.name)) is not None:
                precisions[layer] = _precision(node)
        return precisions

    def _optimised_nodes(self) -> list[onnx.NodeProto]:
        """Nodes of the graph as ONNX Runtime runs it, which it only reports by writing a file."""
        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            # All that changes a precision, but not the memory layouts, which take the nodes' names away.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            _open(self._artifact, options)
            return list(onnx.load(options.optimized_model_filepath).graph.node)

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry(*FLOAT_ACTIVATIONS)
        return options


def _precision(node: onnx.NodeProto) -> str:
    """What a layer multiplies: the integers that it is stored in where those are dequantized in the kernel."""
    if node.op_type == "MatMulNBits":
        bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
        return "u4" if bits == 4 else "f32"
    return "i8" if node.op_type in INTEGER_TYPES else "f32"


def _open(artifact: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    except REFUSALS as error:
        raise LoweringError(f"ONNX Runtime refuses {artifact.name}: {str(error).splitlines()[0]}") from error
