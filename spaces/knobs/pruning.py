"""Knobs of which weights are zeroed, and of how everything is pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import PlainValidator

from ...core.validation import Count, Text, one_of
from ..policies.policy import Choice
from ..policies.pruning import MULTIPLES, REDUCTIONS, SCOPES
from ..policies.sparsity import Sparsity, threshold_of, zeros_in
from .kind import KnobKind, LayerKind, PruningKind
from .structure import removed_damage

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.layers import Layer


@dataclass(frozen=True, kw_only=True)
class _WeightSparsity(LayerKind):
    def why_not(self, choice: Choice, layer: Layer) -> str | None:
        return "its input dimension is not a multiple of 4" if choice == "2:4" and not layer.sparsifiable_2_4 else None

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        return removed_damage(0.5 if isinstance(choice, str) else choice)

    def furthest(self, choices: Sequence[Choice], weights: Sequence[Tensor]) -> Choice:
        return max(choices, key=lambda choice: sum(zeros_in(weight, choice) * weight.numel() for weight in weights))


def _sparsity(value: object) -> Sparsity:
    if isinstance(value, str) and (value == "2:4" or threshold_of(value) is not None):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise ValueError(f'{value!r} is not a number in [0, 1) or, in quotes, "2:4" or a threshold such as "<0.5std"')


KINDS: tuple[KnobKind, ...] = (
    _WeightSparsity(
        name="sparsity",
        key="weight_sparsity",
        type=Annotated[Sparsity, PlainValidator(_sparsity)],
        neutral=0.0,
        meaning='Per layer: a number in [0, 1), `"2:4"` for two of every four, or a threshold in standard deviations such as `"<0.5std"`.',
        unit="fraction zeroed",
        label="weight sparsity",
        technique="weight sparsity",
        is_counted=True,
        is_numbered_when_off=True,
    ),
    PruningKind(
        name="criterion",
        key="criterion",
        type=Text,
        neutral="l2",
        meaning="Importance that channels, heads and weights are ranked by; a [plug-in](../guide/plug-ins.md) may add more.",
        label="criterion",
    ),
    PruningKind(
        name="scope",
        key="sparsity_scope",
        type=Annotated[str, one_of(SCOPES)],
        neutral="layer",
        meaning="`layer`, or `global` to take weights wherever importance is lowest.",
        label="scope",
    ),
    PruningKind(
        name="steps",
        key="pruning_steps",
        type=Count,
        neutral=1,
        meaning="More than one prunes gradually during recovery.",
        unit="steps",
        label="steps",
    ),
    PruningKind(
        name="reduction",
        key="channel_reduction",
        type=Annotated[str, one_of(REDUCTIONS)],
        neutral="drop",
        meaning="`drop`, `merge` into the most similar channel kept, `reconstruct` from all kept by least squares, or `lasso`: "
        "the same, of channels chosen by LASSO.",
        label="reduction",
    ),
    PruningKind(
        name="multiple",
        key="channel_multiple",
        type=Annotated[int, one_of(MULTIPLES)],
        neutral=8,
        meaning="Layers keep a multiple of this many channels, and at least one of it: 4, 8, 16 or 32.",
        unit="channels",
        label="channel multiple",
    ),
)
