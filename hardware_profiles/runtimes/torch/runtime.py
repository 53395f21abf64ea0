"""PyTorch itself: the exported program run eagerly, or compiled ahead of time by Inductor into native code.

Eagerly the grids are simulated in float32, so that bits cost time and gain none; `options: {compile: true}` compiles
quantized convolutions and linear layers to oneDNN's integer kernels by torchao's fusion passes for x86. Either way the
artifact is one PT2 archive that plain torch loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ....core.batch import INPUT, OUTPUT, Batch, from_names, repeated, tensors_of
from ....spaces.policies.float_precision import BFLOAT16, FLOAT32, FloatPrecision, FloatType
from ..base import Artifact, Signature, TensorInfo, distinct
from .archive import Archive, open_archive

if TYPE_CHECKING:
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

    def lower(self, candidate: Candidate, example_input: Batch, target: Target, path: Path) -> Artifact:
        from .lowering import lower  # the exporter, which sessions do without

        inputs = repeated(example_input, target.batch)
        return Artifact.of(lower(candidate, inputs, path, self.device, bool(target.options.get("compile"))))

    def signature(self, artifact: Path) -> Signature:
        return signature_of(open_archive(artifact).notes)

    def load(self, artifact: Path, target: Target, threads: int | None = None) -> TorchSession:
        # The number of threads is the process's, and the runtime of a process has one target.
        torch.set_num_threads(threads or target.threads)
        return TorchSession(open_archive(artifact), self.device)


class TorchSession:
    """See `Session`."""

    def __init__(self, archive: Archive, device: str = "cpu") -> None:
        self._model, self._notes = archive.model, archive.notes
        self._device = torch.device(device)
        self._outputs = [info.name for info in signature_of(archive.notes).outputs]

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._model(self._given(inputs))
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._outputs, tensors_of(results), strict=True)}

    def _given(self, inputs: Mapping[str, np.ndarray]) -> Batch:
        """A batch of inputs where the model runs."""
        tensors = {name: torch.from_numpy(values).to(self._device) for name, values in inputs.items()}
        return from_names(tensors, INPUT)

    def executed_precisions(self) -> dict[str, str]:
        """The precision of every layer; torch widens bfloat16 to float32 on a machine without it."""
        real = "bf16" if computes_bfloat16(self._device) else "f32"
        return {layer: real if noted == "bf16" else noted for layer, noted in self._notes["precisions"].items()}


def signature_of(notes: Mapping[str, Any]) -> Signature:
    """What the notes of an archive say of its inputs and outputs; earlier ones say two shapes."""
    if "signature" in notes:
        given, made = notes["signature"]
        return Signature((TensorInfo(INPUT, tuple(given), "float32"),), (TensorInfo(OUTPUT, tuple(made), "float32"),))
    ends = (
        [TensorInfo(name, tuple(shape), dtype) for name, shape, dtype in notes[end]] for end in ("inputs", "outputs")
    )
    inputs, outputs = map(tuple, ends)
    return Signature(inputs, outputs)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
