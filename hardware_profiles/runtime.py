"""Runtimes: how a candidate becomes an artifact and how an artifact runs. Nothing here imports torch.

A runtime lowers a `Candidate` to one file and loads that file into a session. What is timed, what is scored and what is
exported is always that file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import TargetError
from .target import Target

if TYPE_CHECKING:  # the bench's process loads artifacts without torch
    from torch import Tensor

    from ..spaces.candidate import Candidate


@dataclass(frozen=True)
class Artifact:
    """The file a runtime loads.

    Attributes:
        path: absolute.
        bytes: its size.
        sha256: hex digest of its content.
    """

    path: Path
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Artifact:
        """Describe the file at `path`."""
        content = path.read_bytes()
        return cls(path.resolve(), len(content), hashlib.sha256(content).hexdigest())


class Session(Protocol):
    """A loaded artifact. Not safe to share between threads."""

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs [batch, ...] for one batch of inputs [batch, ...], float32. The result may be reused by the next call."""
        ...

    def executed_precisions(self) -> dict[str, str]:
        """Layer -> precision it runs in ("i8", "f32", "bf16", ...), by the runtime's own report."""
        ...


class Runtime(Protocol):
    """Lowers candidates and loads artifacts."""

    name: str

    def version(self) -> str:
        """The installed version of the runtime's library."""
        ...

    def lower(self, candidate: Candidate, example_input: Tensor, target: Target, path: Path) -> Artifact:
        """Write the artifact to `path`.

        Raises:
            LoweringError: the candidate cannot be expressed for this runtime.
        """
        ...

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> Session:
        """Load an artifact on `threads` threads (the target's where not given).

        Raises:
            LoweringError: the runtime refuses the file.
        """
        ...


_RUNTIMES = {
    "openvino": ("openvino_runtime", "OpenVinoRuntime", "openvino"),
    "onnxruntime": ("onnxruntime_runtime", "OnnxRuntime", "onnxruntime"),
}
"""Runtime name -> (module here, class, package to install)."""


def runtimes() -> list[str]:
    """Names of the runtimes slimfront knows."""
    return sorted(_RUNTIMES)


def get_runtime(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        TargetError: unknown, or its package is not installed.
    """
    if name not in _RUNTIMES:
        raise TargetError(f"unknown runtime {name!r}; known are {', '.join(runtimes())}")
    module, cls, package = _RUNTIMES[name]
    try:
        return getattr(import_module(f".{module}", __package__), cls)()
    except ModuleNotFoundError as error:
        raise TargetError(f"runtime {name!r} is not installed: pip install {package}") from error
