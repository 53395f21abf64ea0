"""Names under which trials and studies note what Optuna has no field for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DAMAGE = ("kl", "damage")
"""The trial attributes of which one holds the damage: of a classifier the KL divergence from the uncompressed model's outputs, in nats."""

STOPPED = "stopped early"
"""The constraint that a trial violates which was stopped before its recovery ended: other samplers keep away from it."""

STOPPED_EPOCHS = "stopped_epochs"
"""The trial attribute that holds how many epochs of recovery a stopped trial had when its damage was measured."""

STOPPED_VALUES = "stopped_values"
"""The trial attribute that holds the objectives of a stopped trial, as they were then."""

FALLBACK = "sampler_fallback"
"""The study attribute that says why TPE proposes instead of the policy sampler; None once it no longer does."""

REASON = "reason"
"""The trial attribute that says why a trial has no result; its text is free."""

STATE = "state"
"""The trial attribute that holds the state of a failed trial in slimfront's tables, or `DUPLICATE`."""

DUPLICATE = "duplicate"
"""The state of a trial that ended because its policy had been tried: it says nothing about the policy."""


def damage_noted(noted: Mapping[str, Any]) -> float | None:
    """The damage among a trial's attributes or values; None where it is not among them."""
    return next((noted[name] for name in DAMAGE if name in noted), None)
