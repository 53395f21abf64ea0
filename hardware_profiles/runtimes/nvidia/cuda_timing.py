"""Runs on an NVIDIA GPU, timed by the GPU itself, and what it computes float32 in by default."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ....core.errors import TargetError
from ....spaces.policies.float_precision import FLOAT32, TFLOAT32, FloatType

AMPERE = (8, 0)
"""The compute capability from which NVIDIA's GPUs have tfloat32."""


def require_gpu(runtime: str) -> None:
    """See that there is a GPU.

    Raises:
        TargetError: torch finds none.
    """
    if not torch.cuda.is_available():
        raise TargetError(
            f"runtime {runtime!r} needs an NVIDIA GPU with its driver, and torch finds none on this machine"
        )


def default_float_type() -> FloatType:
    """What NVIDIA's libraries multiply float32 in where nobody asks: tfloat32 where the GPU has it."""
    return TFLOAT32 if torch.cuda.get_device_capability() >= AMPERE else FLOAT32


class CudaRun:
    """A run whose inputs lie on the GPU; see `bench.blocks.SelfTimed`.

    Args:
        enqueue: starts the run on `stream` and does not wait for it.
    """

    def __init__(self, enqueue: Callable[[], object], stream: torch.cuda.Stream) -> None:
        self._enqueue, self._stream = enqueue, stream
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self) -> None:
        self._enqueue()
        self._stream.synchronize()

    def seconds(self) -> float:
        """Run once; the time between two events on its stream, so that copying does not count.

        Where a run is many launches, as of eager torch, the gaps that Python leaves between them do count.
        """
        self._stream.synchronize()
        self._start.record(self._stream)
        self._enqueue()
        self._end.record(self._stream)
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3
