"""TensorRT on an NVIDIA GPU: an engine built of the ONNX file with Q/DQ pairs, in exactly the types it says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs
import tensorrt  # type: ignore[import-not-found]  # of machines with a GPU
import torch
from filelock import FileLock

from ....core.batch import Batch
from ....core.errors import EvaluationError, LoweringError
from ....spaces.policies.float_precision import DEFAULT, FLOAT32, FloatPrecision, FloatType
from ...bench.lock import alone_on_gpu
from ...cards.target import Target
from ..base import Artifact, Signature, TensorInfo, distinct
from .cuda_timing import CudaRun, default_float_type, require_gpu
from .tensorrt_lowering import executed_precisions

if TYPE_CHECKING:
    from ....spaces.policies.candidate import Candidate

LOGGER = tensorrt.Logger(tensorrt.Logger.ERROR)


@dataclass(frozen=True)
class BuildSettings:
    """How engines are built.

    Attributes:
        optimization_level: 0 to 5, how long TensorRT looks for fast kernels; 3 is its own default.
        workspace_bytes: that a kernel may use.
        timing_cache: file of kernels' times, so that equal layers are timed once per GPU and version.
    """

    optimization_level: int
    workspace_bytes: int
    timing_cache: Path

    @classmethod
    def of(cls, target: Target) -> BuildSettings:
        """From a card's options, for this machine's GPU."""
        gpu = torch.cuda.get_device_name().replace(" ", "-")
        cache = Path(platformdirs.user_cache_dir("slimfront")) / f"tensorrt-{tensorrt.__version__}-{gpu}.timings"
        return cls(target.options.get("optimization_level", 3), target.options.get("workspace_mib", 4096) << 20, cache)


class TensorRtRuntime:
    """See `Runtime`.

    Raises:
        TargetError: there is no GPU.
    """

    name = "tensorrt"
    suffix = ".engine"

    def __init__(self) -> None:
        require_gpu(self.name)

    def version(self) -> str:
        return tensorrt.__version__

    def float_precisions(self, target: Target) -> tuple[FloatPrecision, ...]:
        return distinct(self.default_float_precision(target), (FLOAT32,))

    def default_float_precision(self, target: Target) -> FloatType:
        return default_float_type()

    def lower(self, candidate: Candidate, example_input: Batch, target: Target, path: Path) -> Artifact:
        from .tensorrt_lowering import lower

        rounds = candidate.policy.float_precision == DEFAULT
        with tempfile.TemporaryDirectory() as folder:
            model = lower(candidate, example_input, target.batch, Path(folder) / "model.onnx")
            with alone_on_gpu(self.name):  # TensorRT times kernels to choose among them
                path.write_bytes(build_engine(model.read_bytes(), BuildSettings.of(target), rounds))
        return Artifact.of(path)

    def signature(self, artifact: Path) -> Signature:
        engine = _open(artifact)
        inputs, outputs = (
            tuple(
                TensorInfo(name, tuple(engine.get_tensor_shape(name)), _dtype(engine, name).__name__) for name in names
            )
            for names in _ends(engine)
        )
        return Signature(inputs, outputs)

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> TensorRtSession:
        return TensorRtSession(_open(artifact))


def build_engine(model: bytes, settings: BuildSettings, rounds: bool = False) -> bytes:
    """The serialized engine of an ONNX model, strongly typed: float32 stays float32, and int8 is where its pairs are.

    Args:
        rounds: leave TensorRT its default of rounding what float32 layers multiply to tfloat32.

    Raises:
        LoweringError: TensorRT cannot read the model or finds no kernels for it.
    """
    builder = tensorrt.Builder(LOGGER)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, LOGGER)
    if not parser.parse(model):
        raise LoweringError(f"TensorRT cannot read the model: {' '.join(parser.get_error(0).desc().split())}")
    config = builder.create_builder_config()
    config.builder_optimization_level = settings.optimization_level
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # otherwise the inspector reports no precisions
    if not rounds:
        config.clear_flag(tensorrt.BuilderFlag.TF32)
    settings.timing_cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{settings.timing_cache}.lock"):
        known = settings.timing_cache.read_bytes() if settings.timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise LoweringError("TensorRT finds no kernels for the model")
        written = settings.timing_cache.with_suffix(".new")  # a process that is killed leaves the old one complete
        written.write_bytes(config.get_timing_cache().serialize())
        written.replace(settings.timing_cache)
    return bytes(engine)


class TensorRtSession:
    """See `Session`."""

    def __init__(self, engine: tensorrt.ICudaEngine) -> None:
        self._engine, self._context = engine, engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self._given, self._made = ({name: self._bound(name) for name in names} for names in _ends(engine))

    def _bound(self, name: str) -> torch.Tensor:
        """Memory on the GPU for an input or output."""
        dtype = torch.from_numpy(np.empty(0, _dtype(self._engine, name))).dtype
        tensor = torch.empty(tuple(self._engine.get_tensor_shape(name)), dtype=dtype, device="cuda")
        self._context.set_tensor_address(name, tensor.data_ptr())
        return tensor

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.bound(inputs)()
        return {name: tensor.cpu().numpy() for name, tensor in self._made.items()}

    def bound(self, inputs: Mapping[str, np.ndarray]) -> CudaRun:
        """Runs of one batch that is copied to the GPU beforehand."""
        for name, values in inputs.items():
            self._given[name].copy_(torch.from_numpy(values))
        torch.cuda.current_stream().synchronize()
        return CudaRun(self._enqueue, self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise EvaluationError("TensorRT could not run the engine")

    def executed_precisions(self) -> dict[str, str]:
        inspector = self._engine.create_engine_inspector()
        return executed_precisions(json.loads(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON)))


def _open(artifact: Path) -> tensorrt.ICudaEngine:
    try:
        engine = tensorrt.Runtime(LOGGER).deserialize_cuda_engine(artifact.read_bytes())
    except OSError as error:
        raise LoweringError(f"TensorRT refuses {artifact.name}: {error.strerror}") from error
    if engine is None:
        raise LoweringError(
            f"TensorRT refuses {artifact.name}: it is not an engine built by {tensorrt.__version__} for this GPU"
        )
    return engine


def _ends(engine: tensorrt.ICudaEngine) -> tuple[list[str], list[str]]:
    """Names of the inputs and the outputs."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = tensorrt.TensorIOMode.INPUT, tensorrt.TensorIOMode.OUTPUT
    inputs, outputs = ([name for name in names if engine.get_tensor_mode(name) == mode] for mode in modes)
    return inputs, outputs


def _dtype(engine: tensorrt.ICudaEngine, name: str) -> type[np.generic]:
    """The type of an input or output in numpy."""
    return tensorrt.nptype(engine.get_tensor_dtype(name))
