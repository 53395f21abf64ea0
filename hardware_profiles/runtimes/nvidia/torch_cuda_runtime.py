"""PyTorch itself on an NVIDIA GPU: the exported program run eagerly. Grids are simulated in float32, as on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...bench.lock import alone_on_gpu
from ..base import Artifact
from ..torch.archive import Archive, open_archive
from ..torch.runtime import TorchRuntime, TorchSession
from .cuda_timing import CudaRun, require_gpu

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

    def lower(self, candidate: Candidate, example_input: torch.Tensor, target: Target, path: Path) -> Artifact:
        with alone_on_gpu(self.name):
            return super().lower(candidate, example_input, target, path)

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> TorchCudaSession:
        # Full precision means float32; cuDNN would round what it multiplies to 10 bits of mantissa.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        return TorchCudaSession(open_archive(artifact))


class TorchCudaSession(TorchSession):
    """See `Session`."""

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive, TorchCudaRuntime.device)

    def on_device(self, inputs: np.ndarray) -> CudaRun:
        """Runs of one batch that is copied to the GPU beforehand."""
        given = torch.from_numpy(inputs).to(self._device)
        return CudaRun(torch.inference_mode()(lambda: self._model(given)), torch.cuda.current_stream())
