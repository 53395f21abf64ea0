"""The files of a trial that are kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from ...compression.packing.own_state import saved_tensors
from ...compression.packing.packed_file import save_packed
from ...hardware_profiles.runtimes.base import Artifact
from ...spaces.policies.candidate import Candidate
from ...studies.files.study_files import MODEL, PACKED, WEIGHTS

PRECISIONS_FILE = "precisions.json"


def keep_precisions(precisions: Mapping[str, str], folder: Path) -> Artifact:
    """Write the trial's file that lists the precision each layer runs in."""
    path = folder / PRECISIONS_FILE
    path.write_text(json.dumps(precisions), encoding="utf-8")
    return Artifact.of(path)


def keep(candidate: Candidate, artifact: Artifact, folder: Path) -> dict[str, Artifact]:
    """Write a trial's files: the artifact, the float weights it was made from and the packed weights; nothing is pickled."""
    weights = folder / "weights.safetensors"
    save_file(saved_tensors(candidate.model), weights)
    packed = save_packed(candidate, folder / "packed.safetensors")
    return {MODEL: artifact, WEIGHTS: Artifact.of(weights), PACKED: Artifact.of(packed)}
