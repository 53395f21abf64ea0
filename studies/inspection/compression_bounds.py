"""Bounds on compression: how far counts can fall in a space, by each technique alone and by all together.

Only removed channels are built, once; blocks, operators, zeros and bits are counted from there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...compression.packing.packed import smallest_format
from ...compression.pruning.prune import kept_channels, pruned_copy
from ...evaluators.counts import arithmetic_bits
from ...spaces.knobs.kind import Knob
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.models.layers import LAYER_KINDS, layer_at, macs_by_module
from ...spaces.policies.operators import Operator
from ...spaces.policies.policy import Choice, LayerPolicy, Policy
from ...spaces.policies.resolved import is_within
from ...spaces.policies.sparsity import zeros_in
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


def gains(model: nn.Module, example_input: Tensor, space: Space) -> list[Gain]:
    """Bounds from counts: nothing is timed, latency seldom falls as far, and accuracy is not considered.

    Args:
        example_input: shape [1, ...].
    """
    models: dict[tuple[tuple[str, int], ...], tuple[nn.Module, dict[str, int]]] = {}
    models[()] = model, macs_by_module(model, example_input)

    def count(policy: Policy) -> dict[str, float]:
        kept = tuple(kept_channels(policy, space.groups).items())
        if kept not in models:
            slim = pruned_copy(model, example_input, Policy(width=policy.width, channels=policy.channels), space.groups)
            models[kept] = slim, macs_by_module(slim, example_input)
        return counted(*models[kept], policy)

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


def counted(model: nn.Module, macs: Mapping[str, int], policy: Policy) -> dict[str, float]:
    """Metric -> count of `model`, whose channels are pruned already, after everything else in `policy` is applied.

    FLOPs, BOPs, parameters and packed bytes are those of `evaluators.complexity` for the built model; with operators, packed bytes
    are counted as if each layer had one weight.

    Args:
        macs: dotted module path -> multiply-adds of `model`.
    """
    gone = policy.removed_blocks
    names = _layers_outside(model, gone)
    layers = [_Counted.of(model, name, macs.get(name, 0), policy) for name in names]
    parameters = sum(p.numel() for n, p in model.named_parameters() if not is_within(n, gone))
    others = sum(tensor.nbytes for name, tensor in _others(model, names) if not is_within(name, gone))
    return {
        "flops": macs[""] - sum(map(macs.__getitem__, gone)) - sum(layer.macs_saved for layer in layers),
        "bops": sum(layer.bops for layer in layers),
        "parameters": parameters - sum(layer.weights_saved for layer in layers),
        "packed_bytes": sum(layer.packed_bytes for layer in layers) + others,
    }


@dataclass(frozen=True)
class _Counted:
    """A layer's share of the counts; what its operator saves is relative to the dense layer."""

    macs_saved: float
    weights_saved: int
    bops: float
    packed_bytes: int

    @classmethod
    def of(cls, model: nn.Module, name: str, macs: int, policy: Policy) -> _Counted:
        """The counts of the layer at `name`, which does `macs` multiply-adds, under `policy`."""
        weight, decided = _weight(model, name), policy.layer(name)
        size = _size(model, name, decided)
        left = macs * size / weight.numel()
        bops = left * arithmetic_bits(decided) * decided.activation_bits
        return cls(macs - left, weight.numel() - size, bops, _packed(weight, size, policy, name))


def _layers_outside(model: nn.Module, blocks: Collection[str]) -> list[str]:
    """Names of the layers that are in none of `blocks`."""
    layers = [name for name, module in model.named_modules() if type(module) in LAYER_KINDS]
    return [name for name in layers if not is_within(name, blocks)]


def _weight(model: nn.Module, name: str) -> Tensor:
    return layer_at(model, name).weight


def _others(model: nn.Module, layers: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    weights = {f"{name}.weight" for name in layers}
    for name, tensor in model.state_dict().items():
        if name not in weights and not name.endswith(".num_batches_tracked"):
            yield name, tensor


def _size(model: nn.Module, name: str, decided: LayerPolicy) -> int:
    """Weights of the operator that replaces a layer."""
    shape, operator = _weight(model, name).shape, Operator.parse(decided.operator)
    fits = operator.why_not(shape, getattr(model.get_submodule(name), "groups", 1)) is None
    return operator.weights(shape) if fits else math.prod(shape)


def _packed(weight: Tensor, size: int, policy: Policy, name: str) -> int:
    """Bytes of a layer's weight of so many elements, with its scales, zero points and table."""
    decided, rows = policy.layer(name), len(weight)
    values = size - round(zeros_in(weight, decided.sparsity) * size)
    total = smallest_format(rows, -(-size // rows), values, decided.weight_bits)[1]
    total += 4 * (rows if policy.scheme.weights == "channel" else 1) * decided.has_weight_grid
    return total + 4 * 2**decided.weight_bits * decided.has_codebook + 5 * decided.has_activation_grid


@torch.no_grad()
def _least(knob: Knob, model: nn.Module) -> Choice:
    """The choice of a knob that compresses most."""
    kind = KNOB_KINDS[knob.kind]
    weights = [_weight(model, name) for name in knob.governs] if kind.subject == "layer" else []
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
