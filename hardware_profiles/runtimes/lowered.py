"""Lowering from whatever device a candidate was made on."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from ...core.batch import HOST, Batch, device_of_model, moved
from ...spaces.policies.candidate import Candidate
from ..cards.target import Target
from .base import Artifact, Runtime


def lowered(runtime: Runtime, candidate: Candidate, example_input: Batch, target: Target, path: Path) -> Artifact:
    """What `runtime` writes of a candidate to `path`: runtimes read the model in the processor's memory.

    Raises:
        LoweringError: the candidate cannot be expressed for this runtime.
    """
    if device_of_model(candidate.model) != HOST:
        candidate = replace(candidate, model=deepcopy(candidate.model).to(HOST))
    return runtime.lower(candidate, moved(example_input, HOST), target, path)
