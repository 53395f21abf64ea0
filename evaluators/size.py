"""Bytes of the artifact file."""

from __future__ import annotations

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
