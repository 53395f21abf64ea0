"""PyTorch itself on an NVIDIA GPU: the exported program run eagerly. Grids are simulated in float32, as on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ....core.batch import Batch
from ....spaces.policies.float_precision import BFLOAT16, DEFAULT, FLOAT16, FLOAT32, FloatPrecision, FloatType
from ...bench.lock import alone_on_gpu
from ..base import Artifact, distinct
from ..torch.archive import Archive, open_archive
from ..torch.runtime import TorchRuntime, TorchSession, computes_bfloat16
from .cuda_timing import CudaRun, default_float_type, require_gpu

if TYPE_CHECKING:
    from ....spaces.policies.candidate import Candidate
    from ...cards.target import Target


class TorchCudaRuntime(TorchRuntime):
    """See `Runtime`.

    Raises:
        TargetError: there is no GPU.
    """

    name = "torch-cuda"
    device = "cuda"

    def __init__(self) -> None:
        require_gpu(self.name)

    def float_precisions(self, target: Target) -> tuple[FloatPrecision, ...]:
        halves = (BFLOAT16, FLOAT16) if computes_bfloat16(torch.device(self.device)) else (FLOAT16,)
        return distinct(self.default_float_precision(target), (FLOAT32, *halves))

    def default_float_precision(self, target: Target) -> FloatType:
        return default_float_type()

    def lower(self, candidate: Candidate, example_input: Batch, target: Target, path: Path) -> Artifact:
        with alone_on_gpu(self.name):
            return super().lower(candidate, example_input, target, path)

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> TorchCudaSession:
        return TorchCudaSession(open_archive(artifact))


class TorchCudaSession(TorchSession):
    """See `Session`."""

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive, TorchCudaRuntime.device)
        self._rounds = archive.notes.get("float_precision", FLOAT32) == DEFAULT

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._set_rounding()
        return super().run(inputs)

    def bound(self, inputs: Mapping[str, np.ndarray]) -> CudaRun:
        """Runs of one batch that is copied to the GPU beforehand."""
        given = self._given(inputs)

        def enqueue() -> object:
            self._set_rounding()
            return self._model(given)

        return CudaRun(torch.inference_mode()(enqueue), torch.cuda.current_stream())

    def _set_rounding(self) -> None:
        """Set the process's way to compute in float32, which the session that ran before may have left otherwise: by default
        torch lets cuDNN round what convolutions multiply to tfloat32, and no products of matrices."""
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._rounds, False
