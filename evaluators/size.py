"""Bytes of the artifact and of the packed file."""

from __future__ import annotations

from pathlib import Path

from ..compression.packing.packed_file import counted_bytes, packed_bytes
from ..core.errors import EvaluationError
from ..core.measurement import Measurement
from ..spaces.policies.candidate import Candidate
from .evaluator import Context, LoweredCandidate


class ArtifactSize:
    """Size of the file the runtime loads."""

    metrics = ("artifact_bytes",)
    needs_artifact = True

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        if lowered.artifact is None:
            raise EvaluationError("artifact_bytes needs an artifact")
        return [Measurement.exact("artifact_bytes", lowered.artifact.bytes, "file size")]


def counted_size(candidate: Candidate) -> Measurement:
    """What the tensors of a candidate's packed file will take; see `counted_bytes` for what is not known before its grids."""
    return Measurement.exact(
        "packed_bytes", counted_bytes(candidate), "counted: dense, bitmap or CSR, steps and tables"
    )


def packed_size(packed: Path) -> Measurement:
    """What the tensors of a packed file take."""
    return Measurement.exact("packed_bytes", packed_bytes(packed), "packed file")
