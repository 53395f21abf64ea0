"""LiteRT, formerly TensorFlow Lite, on a CPU: XNNPACK's kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from ..base import Artifact, TensorInfo
from ..node_names import layer_of

if TYPE_CHECKING:
    from torch import Tensor

    from ....spaces.policies.candidate import Candidate

schema: Any = schema_py_generated  # its annotations do not know what a valid file always has

WEIGHTED = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)
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

    def lower(self, candidate: Candidate, example_input: Tensor, target: Target, path: Path) -> Artifact:
        from .lowering import lower  # imports torch, which sessions do without

        return Artifact.of(lower(candidate, example_input.expand(target.batch, *example_input.shape[1:]), path))

    def signature(self, artifact: Path) -> tuple[TensorInfo, TensorInfo]:
        model = schema.Model.GetRootAs(artifact.read_bytes())
        graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
        tensors = (signature.Inputs(0), signature.Outputs(0))
        given, made = (
            TensorInfo(
                entry.Name().decode(), tuple(graph.Tensors(entry.TensorIndex()).ShapeAsNumpy().tolist()), "float32"
            )
            for entry in tensors
        )
        return given, made

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
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def run(self, inputs: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self._input, inputs)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)

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
