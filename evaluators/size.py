"""Bytes of the artifact and of the packed file."""

from __future__ import annotations

from pathlib import Path

from ..compression.packed_file import packed_bytes
from ..errors import EvaluationError
from ..measurement import Measurement
from .evaluator import Context, Subject


class ArtifactSize:
    """Size of the file the runtime loads."""

    metrics = ("artifact_bytes",)
    needs_artifact = True

    def evaluate(self, subject: Subject, context: Context) -> list[Measurement]:
        if subject.artifact is None:
            raise EvaluationError("artifact_bytes needs an artifact")
        return [Measurement.exact("artifact_bytes", subject.artifact.bytes, "file size")]


def packed_size(packed: Path) -> Measurement:
    """What the tensors of a packed file take."""
    return Measurement.exact("packed_bytes", packed_bytes(packed), "packed file")
