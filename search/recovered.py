"""Recovered weights that more than one policy may start from: recovery in float does not depend on bits."""

from __future__ import annotations

from dataclasses import replace

from ..spaces.policy import LayerPolicy, Policy
from ..spaces.scheme import Scheme


def structure(policy: Policy) -> Policy | None:
    """What of a policy its recovered weights follow from: all but bits.

    None without recovery, and where weights share values: those that are kept are not those that were trained.
    """
    coded = any(layer.codebook != LayerPolicy().codebook for layer in policy.layers.values())
    if coded or not policy.recovery.epochs:
        return None
    layers = {
        name: LayerPolicy(sparsity=layer.sparsity, operator=layer.operator) for name, layer in policy.layers.items()
    }
    return replace(policy, layers=layers, scheme=Scheme())
