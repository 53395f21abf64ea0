"""A policy in terms of the layers that are really there once blocks are gone and compact operators stand in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .layer_policy import STATIC
from .operators import DENSE, Operator
from .policy import LayerPolicy, Policy
from .recurrent_weights import DYNAMIC_INT8, INT8, read_bits_of, weight_bits_of

FACTORED = ("separable", "rank", "pca")
"""Operators of two layers, called "0" and "1" within the path of the layer they stand for."""


def effective_policy(policy: Policy) -> Policy:
    """`policy` without removed blocks and operators, its decisions on a factored layer carried over to both factors."""
    layers: dict[str, LayerPolicy] = {}
    for name, layer in policy.layers.items():
        if is_within(name, policy.removed_blocks):
            continue
        factored = Operator.parse(layer.operator).kind in FACTORED
        for path in (f"{name}.0", f"{name}.1") if factored else (name,):
            layers[path] = replace(layer, operator=DENSE)
    left = {
        kind: {name: choice for name, choice in decided.items() if not is_within(name, policy.removed_blocks)}
        for kind, decided in policy.module_choices.items()
    }
    return replace(policy, layers=layers, removed_blocks=(), **left)


def as_layer_policies(policy: Policy) -> Policy:
    """`policy` with its decisions on recurrent layers and embeddings written as those on other layers are, for tables."""
    as_layers = {name: LayerPolicy(bits) for name, bits in policy.embeddings.items()}
    as_layers |= {
        name: LayerPolicy(
            weight_bits_of(choice), read_bits_of(choice), activation_range=STATIC if choice == INT8 else DYNAMIC_INT8
        )
        for name, choice in policy.recurrent.items()
    }
    return replace(policy, layers={**policy.layers, **as_layers}, recurrent={}, embeddings={})


def is_within(name: str, blocks: Iterable[str]) -> bool:
    """Whether a module's path is one of `blocks` or lies in one."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)
