"""LiteRT, formerly TensorFlow Lite, on a CPU: XNNPACK's kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ai_edge_litert
import numpy as np
from ai_edge_litert import schema_py_generated
from ai_edge_litert.interpreter import Interpreter

from ....core.errors import LoweringError
from ....spaces.policies.float_precision import FLOAT32, FloatPrecision, FloatType
from ...cards.target import Target
from ..base import Artifact, Signature, TensorInfo
from ..node_names import layer_of

if TYPE_CHECKING:
    from ....core.batch import Batch
    from ....spaces.policies.candidate import Candidate

schema: Any = schema_py_generated  # its annotations do not know what a valid file always has

WEIGHTED = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)
NUMPY_TYPES = {
    schema.TensorType.FLOAT32: "float32",
    schema.TensorType.INT32: "int32",
    schema.TensorType.INT64: "int64",
    schema.TensorType.BOOL: "bool",
    schema.TensorType.UINT8: "uint8",
}
PRECISIONS = {schema.TensorType.FLOAT32: "f32", schema.TensorType.INT8: "i8"}


class LiteRtRuntime:
    """See `Runtime`."""

    name = "litert"
    suffix = ".tflite"

    def version(self) -> str:
        return ai_edge_litert.__version__

    def float_precisions(self, target: Target) -> tuple[FloatPrecision, ...]:
        return (FLOAT32,)

    def default_float_precision(self, target: Target) -> FloatType:
        return FLOAT32

    def lower(self, candidate: Candidate, example_input: Batch, target: Target, path: Path) -> Artifact:
        from .lowering import lower  # imports torch, which sessions do without

        return Artifact.of(lower(candidate, example_input, target.batch, path))

    def signature(self, artifact: Path) -> Signature:
        model = schema.Model.GetRootAs(artifact.read_bytes())
        graph, signature = model.Subgraphs(0), model.SignatureDefs(0)

        def info(entry: Any) -> TensorInfo:
            tensor = graph.Tensors(entry.TensorIndex())
            return TensorInfo(entry.Name().decode(), tuple(tensor.ShapeAsNumpy().tolist()), NUMPY_TYPES[tensor.Type()])

        inputs = tuple(info(signature.Inputs(index)) for index in range(signature.InputsLength()))
        return Signature(inputs, tuple(info(signature.Outputs(index)) for index in range(signature.OutputsLength())))

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> LiteRtSession:
        try:
            return LiteRtSession(artifact, threads or target.threads)
        except (RuntimeError, ValueError, OSError) as error:
            raise LoweringError(f"LiteRT refuses {artifact.name}: {str(error).strip().splitlines()[0]}") from error


class LiteRtSession:
    """See `Session`."""

    def __init__(self, artifact: Path, threads: int) -> None:
        self._artifact = artifact
        with _silence():
            self._interpreter = Interpreter(model_path=str(artifact), num_threads=threads)
            self._interpreter.allocate_tensors()
        signature, *_ = self._interpreter._get_full_signature_list().values()  # which names tensors by their index
        self._inputs: dict[str, int] = signature["inputs"]
        self._outputs: dict[str, int] = signature["outputs"]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, values in inputs.items():
            self._interpreter.set_tensor(self._inputs[name], values)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def executed_precisions(self) -> dict[str, str]:
        """By what each operation reads: the types of its input and weight decide on the kernel."""
        model = schema.Model.GetRootAs(self._artifact.read_bytes())
        graph = model.Subgraphs(0)
        precisions: dict[str, str] = {}
        for operation in map(graph.Operators, range(graph.OperatorsLength())):
            name = graph.Tensors(operation.Outputs(0)).Name().decode()
            if model.OperatorCodes(operation.OpcodeIndex()).BuiltinCode() in WEIGHTED and (layer := layer_of(name)):
                # A weight of integers is multiplied as such; one that is to be multiplied in floats is dequantized before.
                precisions[layer] = PRECISIONS[graph.Tensors(operation.Inputs(1)).Type()]
        return precisions


@contextmanager
def _silence() -> Iterator[None]:
    """LiteRT announces its kernels on the process's error stream, and has no setting against it; errors are raised, too."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
