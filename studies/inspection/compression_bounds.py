"""Bounds on compression: how far counts can fall in a space, by each technique alone and by all together.

Only removed channels are built, once; blocks, operators, zeros and bits are counted from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ...compression.pruning.prune import kept_channels, pruned_copy
from ...core.batch import Batch
from ...evaluators.counts import counts_of
from ...spaces.knobs.kind import Knob, LayerKind
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.models.layers import layer_at, macs_by_module
from ...spaces.policies.policy import Choice, Policy
from ...spaces.policies.pruning import Pruning
from ...spaces.space import Space

TOGETHER = "all together"


@dataclass(frozen=True)
class Gain:
    """The reduction of a quantity by a technique.

    Attributes:
        technique: as kinds of knobs name it, or `TOGETHER`.
        metric: a key of `METRICS`.
        before, after: of the uncompressed model, and at the end of the space.
        how: the end of the space in words.
    """

    technique: str
    metric: str
    before: float
    after: float
    how: str


def gains(model: nn.Module, example_input: Batch, space: Space) -> list[Gain]:
    """Bounds from counts: nothing is timed, latency seldom falls as far, and accuracy is not considered.

    Args:
        example_input: shape [1, ...].
    """
    models: dict[tuple[tuple[str, int], ...], tuple[nn.Module, dict[str, int]]] = {}
    models[()] = model, macs_by_module(model, example_input)

    def count(policy: Policy) -> dict[str, float]:
        kept = tuple(kept_channels(policy, space.groups).items())
        if kept not in models:
            pruning = Pruning(multiple=policy.pruning.multiple)
            structure = Policy(width=policy.width, channels=policy.channels, pruning=pruning)
            slim = pruned_copy(model, example_input, structure, space.groups)
            models[kept] = slim, macs_by_module(slim, example_input)
        return counts_of(*models[kept], policy)

    before, found = count(Policy()), []
    for technique, kinds in _techniques().items():
        ends = {knob: _least(knob, model) for knob in space.knobs if knob.kind in kinds}
        policy = space.policy({knob.name: ends.get(knob, _neutral(knob)) for knob in space.knobs})
        how = _in_words(ends, policy, space) if technique != TOGETHER else "everything above"
        after = count(policy) if ends else before
        found += [
            Gain(technique, name, before[name], value, how) for name, value in after.items() if value < before[name]
        ]
    return found


def _techniques() -> dict[str, set[str]]:
    """Technique -> names of its kinds of knobs: what is left of the model first, then bits, then all of them together."""
    found: dict[str, set[str]] = {}
    for kind in sorted(KNOB_KINDS.values(), key=lambda kind: kind.is_quantizing):
        if kind.technique:
            found.setdefault(kind.technique, set()).add(kind.name)
    return {**found, TOGETHER: set().union(*found.values())}


@torch.no_grad()
def _least(knob: Knob, model: nn.Module) -> Choice:
    """The choice of a knob that compresses most."""
    kind = KNOB_KINDS[knob.kind]
    weights = [layer_at(model, name).weight for name in knob.governs] if isinstance(kind, LayerKind) else []
    return kind.furthest(knob.choices, weights)


def _neutral(knob: Knob) -> Choice:
    neutral = KNOB_KINDS[knob.kind].neutral
    return neutral if neutral in knob.choices else knob.choices[0]


def _in_words(ends: Mapping[Knob, Choice], policy: Policy, space: Space) -> str:
    chosen: dict[str, list[str]] = {}
    for knob, choice in ends.items():
        kind = KNOB_KINDS[knob.kind]
        if kind.subject not in ("block", "ranking"):
            chosen.setdefault(kind.label, []).append(str(choice))
    parts = [f"{word} {' and '.join(dict.fromkeys(choices))}" for word, choices in chosen.items()]
    removed = f"{len(policy.removed_blocks)} of {len(space.blocks)} blocks removed"
    return ", ".join(parts) or removed
