"""What a trial's layers really ran in, and which bits therefore only save storage."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...spaces.policies.policy import LayerPolicy, Policy
from ...spaces.policies.resolved import as_layer_policies
from ..store.store import Store
from .study_files import PRECISIONS, StudyFiles

BITS = {"f32": 32, "f16": 16, "bf16": 16, "i8": 8, "i4": 4, "u4": 4}
"""What runtimes call their precisions -> bits of an operand."""


def executed_precisions(store: Store, study: str, trial: int) -> dict[str, str]:
    """Layer -> precision by the runtime's own report; empty where the trial was not timed or the file is gone."""
    path = StudyFiles(store, study).found(trial, PRECISIONS)
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))


def ran_in(layer: LayerPolicy, precision: str | None) -> str:
    """A precision in words, marked *storage-only* where the runtime has no kernel for the layer's bits.

    Bits below the precision a layer ran in make it no faster: at best its file is smaller.
    """
    if precision is None:
        return "not reported"
    narrowest = min(layer.weight_bits, layer.activation_bits)
    if layer.has_codebook:  # decoded when the artifact was made
        return f"{precision}, {narrowest} bits storage-only"
    return f"{precision}, {narrowest} bits storage-only" if narrowest < BITS.get(precision, 0) else precision


def storage_only(policy: Policy, executed: Mapping[str, str]) -> list[str]:
    """Layers whose bits no kernel of the runtime computes with."""
    layers = as_layer_policies(policy).layers
    return [name for name, layer in layers.items() if "storage-only" in ran_in(layer, precision_of(name, executed))]


def precision_of(layer: str, executed: Mapping[str, str]) -> str | None:
    """What a layer ran in, or the wider of what the two layers ran in that a compact operator put in its place."""
    found = [executed[path] for path in (layer, f"{layer}.0", f"{layer}.1") if path in executed]
    return max(found, key=lambda precision: BITS.get(precision, 0), default=None)
