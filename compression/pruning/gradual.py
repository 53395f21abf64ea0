"""Gradual pruning: a little at a time, with training in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.policies.operators import DENSE
from ...spaces.policies.policy import LayerPolicy, Policy
from ...spaces.policies.resolved import effective_policy
from ...workloads.workload import Workload
from .prune import pruned_copy

Train = Callable[[nn.Module, Policy], None]
"""A function that trains a model in place under a policy, whose zeros stay zero."""


def cubic(step: int, steps: int) -> float:
    """The share in (0, 1] of the final sparsity after `step` of `steps`: fast at first, slow near the end (Zhu & Gupta 2017,
    arXiv:1710.01878, equation 1, from a dense start)."""
    return 1 - (1 - step / steps) ** 3


def gradually_pruned(
    workload: Workload, policy: Policy, groups: Sequence[ChannelGroup], train: Train, seed: int = 0
) -> nn.Module:
    """A copy of the workload's model pruned as `policy` says in `policy.pruning.steps` steps, trained after all but the last.

    It has the architecture that pruning at once would give. Blocks go in the first step; operators, patterns and thresholds
    of weights come with the last.

    Raises:
        CompressionError: the policy does not fit the model.
    """
    steps = policy.pruning.steps
    model = workload.model
    for step in range(1, steps + 1):
        current = at_share(policy, cubic(step, steps)) if step < steps else policy
        model = pruned_copy(model, workload.example_input, current, groups, workload, seed)
        if step < steps:
            train(model, effective_policy(current))
    return model


def at_share(policy: Policy, share: float) -> Policy:
    """`policy` with `share` of what it prunes."""
    return replace(
        policy,
        width=1 - share * (1 - policy.width),
        channels={group: share * fraction for group, fraction in policy.channels.items()},
        layers={name: _layer_at_share(layer, share) for name, layer in policy.layers.items()},
    )


def _layer_at_share(layer: LayerPolicy, share: float) -> LayerPolicy:
    sparsity = 0.0 if isinstance(layer.sparsity, str) else share * layer.sparsity
    return replace(layer, sparsity=sparsity, operator=DENSE)
