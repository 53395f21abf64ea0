"""Bytes of the artifact and of the packed file."""

from __future__ import annotations

from ..compression.packing.packed_file import counted_bytes, packed_bytes
from ..core.measurement import Measurement
from ..core.metrics import metrics_named
from .evaluator import Context, Evaluator, LoweredCandidate, needed
from .registry import register


@register
class ArtifactSize(Evaluator):
    """Size of the file the runtime loads."""

    name = "artifact size"
    metrics = metrics_named("artifact_bytes")
    phases = ("timed", "recovered")

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        artifact = needed(lowered.artifact, "artifact_bytes needs an artifact")
        return [Measurement.exact("artifact_bytes", artifact.bytes, "file size")]


@register
class CountedSize(Evaluator):
    """The estimated size of the packed file's tensors, before it is written; `counted_bytes` says what the estimate leaves out."""

    name = "counted size"
    metrics = metrics_named("packed_bytes")
    phases = ("counted", "timed")

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        if lowered.packed is not None:  # its size is measured instead
            return []
        candidate = needed(lowered.candidate, "counted size needs the model")
        how = "counted: dense, bitmap or CSR, steps and tables"
        return [Measurement.exact("packed_bytes", counted_bytes(candidate), how)]


@register
class PackedSize(Evaluator):
    """What the tensors of the packed file take, once it is written."""

    name = "packed size"
    metrics = metrics_named("packed_bytes")
    phases = ("scored", "recovered")

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        if lowered.packed is None:
            return []
        return [Measurement.exact("packed_bytes", packed_bytes(lowered.packed), "packed file")]
