"""OpenVINO on a CPU, from the ONNX file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import openvino
import openvino.opset13 as ops

from ....core.errors import LoweringError
from ....spaces.policies.float_precision import BFLOAT16, DEFAULT, FLOAT16, FLOAT32, FloatPrecision, FloatType
from ....spaces.policies.layer_policy import GROUPED_BITS
from ...cards.target import Target
from ..base import Artifact, Signature, distinct
from ..node_names import layers_of
from .options import LoweringOptions
from .signature import onnx_signature

if TYPE_CHECKING:
    from ....core.batch import Batch
    from ....spaces.policies.candidate import Candidate

OPTIONS = LoweringOptions(
    fused_linears=True, group_kernels=GROUPED_BITS, signed_grids=True, kept_axes=True, spelt_permutations=True
)
"""How OpenVINO's files are written."""

DYNAMIC = ["framework", "slimfront.dynamic"]
"""Where OpenVINO keeps the metadata under `lowering.DYNAMIC`."""

PRECISION = ["framework", "slimfront.float_precision"]
"""Where OpenVINO keeps the metadata under `lowering.PRECISION`."""

ALL_BFLOAT16 = ["framework", "slimfront.bfloat16"]
"""Where OpenVINO keeps what files of earlier versions have in its place where all layers are in bfloat16 or integers."""

HINTS: dict[Literal["float32", "bfloat16", "float16"], str] = {FLOAT32: "f32", BFLOAT16: "bf16", FLOAT16: "f16"}
"""The values of OpenVINO's INFERENCE_PRECISION_HINT."""

GROUP_SIZE = 32
"""The number of inputs of a linear layer that share one scale in dynamic quantization."""

ONE_STREAM: dict[str, Any] = {"NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
"""One batch at a time; pinned is the process as a whole."""

RECURRENT_TYPE = "RNNSeq"
WEIGHTED_TYPES = ("Convolution", "FullyConnected", "MatMul", RECURRENT_TYPE)


class OpenVinoRuntime:
    """See `Runtime`."""

    name = "openvino"
    suffix = ".onnx"

    def version(self) -> str:
        return openvino.__version__.partition("-")[0]

    def float_precisions(self, target: Target) -> tuple[FloatPrecision, ...]:
        return distinct(self.default_float_precision(target), filter(computes, HINTS))

    def default_float_precision(self, target: Target) -> FloatType:
        return taken_for(DEFAULT) or FLOAT32

    def lower(self, candidate: Candidate, example_input: Batch, target: Target, path: Path) -> Artifact:
        from .lowering import lower  # imports torch, which sessions do without

        return Artifact.of(lower(candidate, example_input, target.batch, path, OPTIONS))

    def signature(self, artifact: Path) -> Signature:
        return onnx_signature(artifact)

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> OpenVinoSession:
        core = shared_core()
        config = ONE_STREAM | {"INFERENCE_NUM_THREADS": threads or target.threads}
        try:
            model = core.read_model(artifact)
            if _has_grids(model):
                # OpenVINO 2026.4 computes nonsense at small batches where a multiplication per channel stands between two
                # quantized linear layers and becomes a snippet.
                config["SNIPPETS_MODE"] = "DISABLE"
            # By default OpenVINO quantizes the inputs of linear layers with integer weights, in every file.
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP_SIZE if model.has_rt_info(DYNAMIC) else 0
            config |= _hinted(_precision(model))
            return OpenVinoSession(model, core.compile_model(model, "CPU", config))
        except RuntimeError as error:
            raise LoweringError(f"OpenVINO refuses {artifact.name}: {str(error).strip().splitlines()[-1]}") from error


class OpenVinoSession:
    """See `Session`."""

    def __init__(self, model: openvino.Model, compiled: openvino.CompiledModel) -> None:
        self._model, self._compiled = model, compiled
        self._request = compiled.create_infer_request()
        self._bound: dict[str, np.ndarray] = {}
        self._outputs = [output.get_any_name() for output in compiled.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, values in inputs.items():
            # Binding takes longer than the rest of what Python does around a run.
            if self._bound.get(name) is not values:
                self._bind(name, values)
        results = self._request.infer(share_outputs=True)
        return {name: results[index] for index, name in enumerate(self._outputs)}

    def bound(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """See `BindingSession`; what else `run` does takes 5 to 17 us, the more the larger the network."""
        for name, values in inputs.items():
            self._bind(name, values)
        return partial(self._request.infer, share_outputs=True)

    def _bind(self, name: str, values: np.ndarray) -> None:
        shared = np.require(values, requirements=["C", "W"])  # OpenVINO shares no memory that may not be written
        self._request.set_tensor(name, openvino.Tensor(shared, shared_memory=True))
        self._bound[name] = shared

    def executed_precisions(self) -> dict[str, str]:
        precisions: dict[str, str] = {}
        ranged = self._model.has_rt_info(DYNAMIC)
        original = {node.get_friendly_name(): node for node in self._model.get_ops()}
        for operation in _weighted(self._compiled):
            precision = _information(operation, "runtimePrecision").replace("u8", "i8")
            if precision == "i8" and not ranged:
                # A linear layer whose weight alone is stored as integers is reported as integer too; it computes in the type of its input.
                precision = operation.get_input_element_type(0).get_type_name().replace("u8", "i8")
            names = _information(operation, "originalLayersNames").split(",")
            # Fully connected operations may be named after what was fused to them; their weights are not.
            # Recurrent ones are named after nothing; their matrices follow a state or two.
            is_recurrent = _information(operation, "layerType") == RECURRENT_TYPE
            sources = operation.input_values()[1:] if is_recurrent else [operation.input_value(1)]
            names_of_layers = [*names, *(_constant_before(source).get_friendly_name() for source in sources)]
            found = set().union(*map(layers_of, names_of_layers))
            if not found:  # what followed the layer was folded into its weight, and only that is named
                found = set().union(*(_layers_before(original.get(name)) for name in names))
            precisions |= dict.fromkeys(found, precision)
        return self._within_subgraphs() | precisions

    def _within_subgraphs(self) -> dict[str, str]:
        """Precisions of layers that OpenVINO compiles into one kernel with their neighbours, by the names it keeps of them."""
        subgraphs = _operations(self._compiled, ("Subgraph",))
        return {
            layer: _information(operation, "runtimePrecision")
            for operation in subgraphs
            for name in _information(operation, "originalLayersNames").split(",")
            for layer in layers_of(name)
        }


@cache
def shared_core() -> openvino.Core:
    """The process's one `Core`.

    On a processor with AMX each Core gives its thread a stack for signal handlers, and its end brings the one before back. Of two that
    end in the order they began, the second brings back memory that is freed, and Ctrl-C then ends the process (OpenVINO 2026.4).

    The first model that a process with pinned cores compiles asks the system for its cores never again, where all later ones ask
    before each run, as all do in a process that is not pinned (OpenVINO 2026.4: sched_getaffinity, about 1 us). A reference
    loaded first would seem 13 % faster than itself at 8 us; so the first is one that nobody runs.
    """
    core, x = openvino.Core(), ops.parameter([1], np.float32)
    core.compile_model(_model(x, ops.relu(x)), "CPU", ONE_STREAM | {"INFERENCE_NUM_THREADS": 1})
    return core


def _model(parameter: openvino.Node, result: openvino.Node) -> openvino.Model:
    return openvino.Model([result], [parameter])  # pyright: ignore[reportGeneralTypeIssues]  # the stub has two classes


def computes(precision: FloatPrecision) -> bool:
    """Whether OpenVINO computes a whole file in `precision` here, and in nothing else."""
    return taken_for(precision) == precision


@cache
def taken_for(precision: FloatPrecision) -> FloatType | None:
    """The type in which OpenVINO computes a whole file here where it is asked for `precision`; None where it refuses such a file.

    Its list of capabilities names what the processor has, also where its kernels are limited to less
    (`ONEDNN_MAX_CPU_ISA`) and refuse such a file; so it is asked to compile one.
    """
    core = shared_core()
    if precision == BFLOAT16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None  # it would be emulated, which takes fifty times as long
    vector = ops.parameter([1, 16], np.float32)
    product = ops.matmul(vector, np.ones((16, 16), np.float32), False, False)
    try:
        compiled = core.compile_model(_model(vector, product), "CPU", _hinted(precision))
    except RuntimeError:
        return None
    types = {_information(operation, "runtimePrecision") for operation in _weighted(compiled)}
    return next((known for known, hint in HINTS.items() if types == {hint}), None)


def _hinted(precision: FloatPrecision) -> dict[str, str]:
    """Settings that ask for `precision`; by default nobody asks."""
    return {} if precision == DEFAULT else {"INFERENCE_PRECISION_HINT": HINTS[precision]}


def _has_grids(model: openvino.Model) -> bool:
    """Whether anything but weights is quantized."""
    return any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())


def _precision(model: openvino.Model) -> FloatPrecision:
    """The precision in which a file's floats are computed: the one that it names, and float32 where the machine does not have that."""
    asked: FloatPrecision = BFLOAT16 if model.has_rt_info(ALL_BFLOAT16) else FLOAT32
    if model.has_rt_info(PRECISION):
        asked = cast(FloatPrecision, model.get_rt_info(PRECISION).astype(str))
    is_computed = taken_for(asked) is not None if asked == DEFAULT else computes(asked)
    return asked if is_computed else FLOAT32


def _weighted(compiled: openvino.CompiledModel) -> list[openvino.Node]:
    """The operations with weights of a model as OpenVINO runs it."""
    return _operations(compiled, WEIGHTED_TYPES)


def _operations(compiled: openvino.CompiledModel, types: Collection[str]) -> list[openvino.Node]:
    operations = compiled.get_runtime_model().get_ordered_ops()
    return [operation for operation in operations if _information(operation, "layerType") in types]


def _information(operation: openvino.Node, key: str) -> str:
    return str(operation.get_rt_info()[key].astype(str))


def _layers_before(node: openvino.Node | None) -> set[str]:
    """The nearest layers up the inputs from `node` of the model as it was read, the first inputs first."""
    waiting = deque([] if node is None else [node])
    while waiting:
        current = waiting.popleft()
        if found := layers_of(current.get_friendly_name()):
            return found
        waiting.extend(value.get_node() for value in current.input_values())
    return set()


def _constant_before(output: openvino.Output) -> openvino.Node:
    """The first operation of the chain that ends in `output`; a weight is a constant, perhaps transposed or converted."""
    node = output.get_node()
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return node
