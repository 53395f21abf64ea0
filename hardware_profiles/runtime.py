"""Runtimes: how a candidate becomes an artifact and how an artifact runs. Nothing here imports torch or a runtime.

A runtime lowers a `Candidate` to one file and loads that file into a session. What is timed, what is scored and what is
exported is always that file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ..errors import TargetError
from ..spaces.policy import ACTIVATION_BITS, BFLOAT16_BITS, WEIGHT_BITS

if TYPE_CHECKING:  # the bench's process loads artifacts without torch
    from torch import Tensor

    from ..spaces.candidate import Candidate
    from .target import Target


@dataclass(frozen=True)
class Artifact:
    """The file a runtime loads.

    Attributes:
        path: absolute.
        bytes: its size.
    """

    path: Path
    bytes: int

    @classmethod
    def of(cls, path: Path) -> Artifact:
        """Describe the file at `path`."""
        return cls(path.resolve(), path.stat().st_size)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the content, read when first asked for: half of what lowering would take, of files not always kept."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """With the digest: when it arrives in another process, the file may have been written anew."""
        return {**self.__dict__, "sha256": self.sha256}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that goes into an artifact or comes out of it; `dtype` as numpy calls it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Session(Protocol):
    """A loaded artifact. Not safe to share between threads."""

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs [batch, ...] for one batch of inputs [batch, ...], float32. The result may be reused by the next call."""
        ...

    def executed_precisions(self) -> dict[str, str]:
        """Layer -> precision it runs in ("i8", "f32", "bf16", ...), by the runtime's own report."""
        ...


@runtime_checkable
class DeviceSession(Protocol):
    """A session on a device with memory and a clock of its own."""

    def on_device(self, inputs: np.ndarray) -> Callable[[], object]:
        """Runs of one batch, copied there beforehand; a `paired_timing.SelfTimed`."""
        ...


class Runtime(Protocol):
    """Lowers candidates and loads artifacts.

    Attributes:
        name: a key of `RUNTIMES`.
        suffix: how its artifacts' file names end, such as ".onnx".
    """

    name: str
    suffix: str

    def version(self) -> str:
        """The installed version of the runtime's library."""
        ...

    def lower(self, candidate: Candidate, example_input: Tensor, target: Target, path: Path) -> Artifact:
        """Write the artifact to `path`.

        Raises:
            LoweringError: the candidate cannot be expressed for this runtime.
        """
        ...

    def signature(self, artifact: Path) -> tuple[TensorInfo, TensorInfo]:
        """The artifact's input and output, batch included."""
        ...

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> Session:
        """Load an artifact on `threads` threads (the target's where not given).

        Raises:
            LoweringError: the runtime refuses the file.
        """
        ...


@dataclass(frozen=True)
class RuntimeEntry:
    """What is known of a runtime before its library is imported.

    Attributes:
        module, cls: where it is: a module here, and the class in it.
        install: what to install for it.
        weight_bits, activation_bits: what it can be given; a card that offers more is refused.
        dynamic: whether it takes 8-bit activations whose range is computed at run time.
        symmetric: whether it takes activation grids with zero in their middle only.
        gpu: whether it computes on an NVIDIA GPU: its memory is not the host's, and one batch runs there at once.
        spins: its threads spin for one another at every operation, so that more than a target has pay on an idle machine
            only: on a busy one, two took 17 times as long as one for an image of digits.
        runs_code: its artifacts hold code that loading or running them executes: compiled kernels (TensorRT's engines, what
            Inductor makes), pickles (torch.export's archives). Those of strangers are not loaded.
        options: what the card's `options` may hold, name -> the values it may have.
    """

    module: str
    cls: str
    install: str
    weight_bits: tuple[int, ...] = WEIGHT_BITS
    activation_bits: tuple[int, ...] = ACTIVATION_BITS
    dynamic: bool = False
    symmetric: bool = False
    gpu: bool = False
    spins: bool = False
    runs_code: bool = False
    options: Mapping[str, Sequence[int]] = field(default_factory=dict)


RUNTIMES = {
    "openvino": RuntimeEntry("openvino_runtime", "OpenVinoRuntime", "slimfront[openvino]", dynamic=True),
    "onnxruntime": RuntimeEntry("onnxruntime_runtime", "OnnxRuntime", "slimfront[onnxruntime]", dynamic=True),
    "litert": RuntimeEntry("litert_runtime", "LiteRtRuntime", "slimfront[litert]", dynamic=True),
    "tensorrt": RuntimeEntry(
        "tensorrt_runtime",
        "TensorRtRuntime",
        "slimfront[tensorrt]",
        activation_bits=tuple(bits for bits in ACTIVATION_BITS if bits != BFLOAT16_BITS),
        symmetric=True,
        gpu=True,
        runs_code=True,
        options={"optimization_level": range(6), "workspace_mib": range(1, 2**20 + 1)},
    ),
    "torch": RuntimeEntry(
        "torch_runtime",
        "TorchRuntime",
        "torch",
        dynamic=True,
        spins=True,
        runs_code=True,
        options={"compile": (False, True)},
    ),
    "torch-cuda": RuntimeEntry(
        "torch_cuda_runtime", "TorchCudaRuntime", "torch", dynamic=True, gpu=True, runs_code=True
    ),
}


def runtimes() -> list[str]:
    """Names of the runtimes slimfront knows."""
    return sorted(RUNTIMES)


def get_runtime(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        TargetError: unknown, or its package is not installed or broken.
    """
    if name not in RUNTIMES:
        raise TargetError(f"unknown runtime {name!r}; known are {', '.join(runtimes())}")
    entry = RUNTIMES[name]
    try:
        return getattr(import_module(f".{entry.module}", __package__), entry.cls)()
    except ModuleNotFoundError as error:
        raise TargetError(
            f"runtime {name!r} is not installed ({error.name} is missing): pip install '{entry.install}'"
        ) from error
    except (ImportError, OSError) as error:  # such as a shared library that is not there
        problem = str(error).partition("\n")[0]
        raise TargetError(f"runtime {name!r} is installed but cannot be loaded: {problem}") from error
