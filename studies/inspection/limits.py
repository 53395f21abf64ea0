"""The limits that a target's card sets to a model's latency, from the operations of the model and of one with half its channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...compression.pruning.prune import pruned_copy
from ...core.batch import Batch
from ...hardware_profiles.cards.target import Target
from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.models.layers import Layer, find_every_layer
from ...spaces.models.operations import operations_of
from ...spaces.policies.policy import Policy
from ..analysis.roofline import Limits, limits, rooflines

ALIKE = 1.1
"""The share of the measured time up to which a least time counts as all of it: both have errors."""


def limits_on(
    model: nn.Module, example_input: Batch, layers: Sequence[Layer], groups: Sequence[ChannelGroup], target: Target
) -> Limits | None:
    """The limits of `model` on a target; None where its card has no measurements that say.

    Args:
        example_input: shape [1, ...].
        layers: the model's, see `find_every_layer`.
        groups: whose channels half the width takes.
    """
    whole = rooflines(operations_of(model, example_input, layers), target) if target.measured else {}
    if not whole or not groups:
        return limits(whole, {})
    slim = pruned_copy(model, example_input, Policy(width=0.5), groups)
    return limits(whole, rooflines(operations_of(slim, example_input, find_every_layer(slim, example_input)), target))


def limits_text(found: Limits | None, target: Target, latency_ms: float | None = None) -> str:
    """A sentence for people.

    Args:
        latency_ms: measured of the model, for how much of it the limits explain.
    """
    if found is None:
        return f"what bounds it is unknown: `slimfront profile {target.name}` measures it"
    if latency_ms is None:
        return str(found)
    share = found.now.latency_ms / latency_ms
    if share <= ALIKE:
        return f"{found}; that is {min(share, 1):.0%} of what was measured"
    # Rates that a busy machine reached, or other shapes, are no bounds.
    return (
        f"{found}; it was measured to take {1 / share:.0%} of that, so that its limits are not tight: on a quiet machine "
        f"`slimfront profile {target.name}` measures them anew"
    )
