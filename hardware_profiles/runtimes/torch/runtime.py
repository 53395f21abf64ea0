"""PyTorch itself: the exported program run eagerly, or compiled ahead of time by Inductor into native code.

Eagerly the grids are simulated in float32, so that bits cost time and gain none; `options: {compile: true}` compiles
quantized convolutions and linear layers to oneDNN's integer kernels by torchao's fusion passes for x86. Either way the
artifact is one PT2 archive that plain torch loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ....spaces.policies.float_precision import BFLOAT16, FLOAT32, FloatPrecision, FloatType
from ..base import Artifact, TensorInfo, distinct
from .archive import Archive, open_archive

if TYPE_CHECKING:
    from torch import Tensor

    from ....spaces.policies.candidate import Candidate
    from ...cards.target import Target


class TorchRuntime:
    """See `Runtime`."""

    name = "torch"
    suffix = ".pt2"
    device = "cpu"

    def version(self) -> str:
        return torch.__version__.partition("+")[0]

    def float_precisions(self, target: Target) -> tuple[FloatPrecision, ...]:
        return distinct(FLOAT32, (BFLOAT16,) if computes_bfloat16(torch.device(self.device)) else ())

    def default_float_precision(self, target: Target) -> FloatType:
        return FLOAT32

    def lower(self, candidate: Candidate, example_input: Tensor, target: Target, path: Path) -> Artifact:
        from .lowering import lower  # the exporter, which sessions do without

        batch = example_input.expand(target.batch, *example_input.shape[1:])
        return Artifact.of(lower(candidate, batch, path, self.device, bool(target.options.get("compile"))))

    def signature(self, artifact: Path) -> tuple[TensorInfo, TensorInfo]:
        given, made = open_archive(artifact).notes["signature"]
        return TensorInfo("input", tuple(given), "float32"), TensorInfo("output", tuple(made), "float32")

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> TorchSession:
        # The number of threads is the process's, and the runtime of a process has one target.
        torch.set_num_threads(threads or target.threads)
        return TorchSession(open_archive(artifact), self.device)


class TorchSession:
    """See `Session`."""

    def __init__(self, archive: Archive, device: str = "cpu") -> None:
        self._model, self._notes = archive.model, archive.notes
        self._device = torch.device(device)

    @torch.inference_mode()
    def run(self, inputs: np.ndarray) -> np.ndarray:
        return self._model(torch.from_numpy(inputs).to(self._device)).cpu().numpy()

    def executed_precisions(self) -> dict[str, str]:
        """The precision of every layer; torch widens bfloat16 to float32 on a machine without it."""
        real = "bf16" if computes_bfloat16(self._device) else "f32"
        return {layer: real if noted == "bf16" else noted for layer, noted in self._notes["precisions"].items()}


def computes_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
