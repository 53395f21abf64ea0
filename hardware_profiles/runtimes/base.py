"""Runtimes: how a candidate becomes an artifact and how an artifact runs. This module imports neither torch nor a runtime.

A runtime lowers a `Candidate` to one file and loads that file into a session. That file is what is
timed, scored and exported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ...core.errors import TargetError
from ...spaces.policies.float_precision import BFLOAT16, DEFAULT, FLOAT16, FLOAT32, FloatPrecision, FloatType
from .registry import RUNTIMES

if TYPE_CHECKING:  # the bench's process loads artifacts without torch
    from ...core.batch import Batch
    from ...spaces.policies.candidate import Candidate
    from ..cards.target import Target


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
        """Hex digest of the content, computed on first use: it takes half as long as lowering, and not every file is kept."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Include the digest: the file may have been overwritten when this arrives in another process."""
        return {**self.__dict__, "sha256": self.sha256}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output tensor of an artifact; `dtype` is its name in numpy.

    Attributes:
        shape: in the example, batch included.
        axes: axis -> name of its size, of those that may have another.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Signature:
    """What an artifact takes and returns, in its own order."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class Session(Protocol):
    """A loaded artifact. Not safe to share between threads."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, each [batch, ...], of one batch of inputs by name, each [batch, ...], in the types of `Runtime.signature`.
        A single one is called "input", or "output". The next call may reuse the result."""
        ...

    def executed_precisions(self) -> dict[str, str]:
        """Layer -> precision it runs in ("i8", "f32", "bf16", ...), by the runtime's own report."""
        ...


@runtime_checkable
class BindingSession(Protocol):
    """A session that can run one batch again and again without handing it over."""

    def bound(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Runs of one batch, which is where the runtime reads it; a `bench.blocks.SelfTimed` on a device with a clock of its own."""
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

    def float_precisions(self, target: Target) -> tuple[FloatPrecision, ...]:
        """The float precisions of a whole model that are different computations on this machine, the runtime's default first;
        see `distinct`."""
        ...

    def default_float_precision(self, target: Target) -> FloatType:
        """The type that "default" stands for on this machine."""
        ...

    def lower(self, candidate: Candidate, example_input: Batch, target: Target, path: Path) -> Artifact:
        """Write the artifact to `path`.

        Raises:
            LoweringError: the candidate cannot be expressed for this runtime.
        """
        ...

    def signature(self, artifact: Path) -> Signature:
        """The artifact's inputs and outputs, batch included."""
        ...

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> Session:
        """Load an artifact on `threads` threads (the target's where not given).

        Raises:
            LoweringError: the runtime refuses the file.
        """
        ...


def distinct(default: str, others: Iterable[FloatPrecision]) -> tuple[FloatPrecision, ...]:
    """Different computations by name: `default` first, as "float32" where it is that and as "default" elsewhere, then `others`."""
    first = FLOAT32 if default == FLOAT32 else DEFAULT
    return (first, *(precision for precision in others if precision not in (default, first)))


def computed_types(runtime: Runtime, target: Target) -> dict[FloatPrecision, FloatType]:
    """Float precision that can be asked for on this machine -> the type that is computed with."""
    default = runtime.default_float_precision(target)
    types: set[FloatType | FloatPrecision] = {FLOAT32, default, *runtime.float_precisions(target)}
    named: dict[FloatPrecision, FloatType] = {kind: kind for kind in (FLOAT32, BFLOAT16, FLOAT16) if kind in types}
    return {DEFAULT: default, **named}


def require_installed(name: str) -> None:
    """Require that other processes know a runtime too: artifacts are timed and scored in such.

    Raises:
        TargetError: this program registered it itself.
    """
    if name in RUNTIMES.registered:
        raise TargetError(
            f"runtime {name!r} is known to this program only, and artifacts are timed in a process of their own; "
            "have a package offer it by an entry point in slimfront.runtimes, see docs/guide/plug-ins.md"
        )


def get_runtime(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        TargetError: unknown, or its package is not installed or broken.
    """
    entry = RUNTIMES[name]
    try:
        return getattr(import_module(entry.module, __package__), entry.cls)()
    except ModuleNotFoundError as error:
        raise TargetError(
            f"runtime {name!r} is not installed ({error.name} is missing): pip install '{entry.install}'"
        ) from error
    except (ImportError, OSError) as error:  # such as a shared library that is not there
        problem = str(error).partition("\n")[0]
        raise TargetError(f"runtime {name!r} is installed but cannot be loaded: {problem}") from error
