"""Knobs of what is left of a model: width, channels, blocks, and what stands in a layer's place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PlainValidator

from ...core.validation import Fraction, one_of
from ..policies.checks import rounded
from ..policies.draft import PolicyDraft
from ..policies.operators import DENSE, Operator
from ..policies.policy import Choice, Policy
from .kind import Decision, Knob, KnobKind, LayerKind, SearchedModel, Subject, Wish

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.layers import Layer

KeptFraction = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class _Kept(KnobKind):
    """The fraction kept of something."""

    type: object = KeptFraction
    neutral: Choice = 1.0
    subject: Subject = "model"
    owner: str = "student"

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        return removed_damage(0.5 if isinstance(choice, str) else 1 - choice)


class _Width(_Kept):
    def read(self, policy: Policy, knob: Knob) -> Choice:
        return policy.width

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        draft.width = float(choice)


class _Channels(KnobKind):
    def read(self, policy: Policy, knob: Knob) -> Choice:
        return policy.channels.get(knob.governs[0], 0.0)

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        draft.channels[governs[0]] = float(choice)

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        return removed_damage(0.5 if isinstance(choice, str) else choice)

    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        # Removing the same share of every group is a width; the architecture need not be tried twice.
        widths = {rounded(1 - float(width)) for width in choices["width"]}
        left = [share for share in choices[self.key] if share not in widths]
        return super().wishes({**choices, self.key: left}, bits)


class _Removed(KnobKind):
    def read(self, policy: Policy, knob: Knob) -> Choice:
        return int(knob.governs[0] in policy.removed_blocks)

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        if choice:
            draft.removed_blocks.update(governs)

    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        return ()  # removing every block would leave no model


class _Depth(_Kept):
    """One number for all blocks: they are removed from the least important one on."""

    def decisions(self, model: SearchedModel, offered: Sequence[Choice]) -> Iterator[Decision]:
        kept = {len(_beyond(depth, model.ranking)): depth for depth in reversed(offered)}
        different = tuple(depth for depth in offered if depth in kept.values())
        yield Decision(self.owner, self, different, tuple(model.ranking))

    def read(self, policy: Policy, knob: Knob) -> Choice:
        """The smallest depth offered whose removed blocks are all removed by `policy`."""
        gone = set(policy.removed_blocks)
        fitting = [depth for depth in knob.choices if gone.issuperset(_beyond(depth, knob.governs))]
        return min(fitting, key=float, default=knob.choices[0])

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        draft.removed_blocks.update(_beyond(choice, governs))


class _Operator(LayerKind):
    def why_not(self, choice: Choice, layer: Layer) -> str | None:
        return Operator.parse(choice).why_not(layer.shape, layer.groups)

    def decisions(self, model: SearchedModel, offered: Sequence[Choice]) -> Iterator[Decision]:
        yield from self._layer_decisions({layer.name: [layer] for layer in model.layers if layer.is_product}, offered)

    def furthest(self, choices: Sequence[Choice], weights: Sequence[Tensor]) -> Choice:
        return min(choices, key=lambda choice: Operator.parse(choice).weights(weights[0].shape))


def removed_damage(removed: float) -> float:
    """Nats that removing a fraction is guessed to cost: they grow as its square."""
    return removed**2


def _beyond(depth: Choice, ranking: Sequence[str]) -> Sequence[str]:
    """The blocks that a depth, the fraction kept of those that may go, removes."""
    return ranking[: round((1 - float(depth)) * len(ranking))]


def _operator(value: object) -> str:
    Operator.parse(value)
    return str(value)


KINDS: tuple[KnobKind, ...] = (
    _Width(
        name="width",
        key="width",
        meaning="Of every channel group; in (0, 1].",
        unit="fraction kept",
        label="width",
        technique="channels",
        is_counted=True,
        is_numbered_when_off=True,
    ),
    _Channels(
        name="channels",
        key="channel_sparsity",
        type=Fraction,
        neutral=0.0,
        meaning="Per channel group; in [0, 1), of the channels that `width` leaves.",
        unit="fraction removed",
        label="channel sparsity",
        subject="group",
        technique="channels",
        is_counted=True,
        is_numbered_when_off=True,
    ),
    _Removed(
        name="removed",
        key="removed_blocks",
        type=Annotated[int, one_of((0, 1))],
        neutral=0,
        meaning="Per removable block; 1 removes it.",
        label="removed",
        subject="block",
        technique="blocks",
    ),
    _Operator(
        name="operator",
        key="operators",
        type=Annotated[str, PlainValidator(_operator)],
        neutral=DENSE,
        meaning="Per layer: `dense`, `separable`, `groups=N`, `rank=F` or `pca=F`, F being the fraction of the full rank.",
        label="operators",
        technique="operators",
    ),
    _Depth(
        name="depth",
        key="depth",
        meaning="Of the removable blocks, the least important removed first; in (0, 1].",
        unit="fraction kept",
        label="depth",
        subject="ranking",
        technique="blocks",
    ),
)
