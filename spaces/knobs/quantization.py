"""Knobs of the numbers a layer is stored and computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

from ...core.validation import one_of
from ..policies.draft import PolicyDraft
from ..policies.float_precision import DEFAULT, FLOAT32, FLOAT_PRECISIONS, FloatPrecision
from ..policies.layer_policy import (
    ACTIVATION_BITS,
    BFLOAT16_BITS,
    CODEBOOKS,
    FULL_PRECISION,
    GROUP_SIZES,
    GROUPED_BITS,
    RANGES,
    STATIC,
    UNIFORM,
    WEIGHT_BITS,
)
from ..policies.policy import Choice, Policy
from .kind import Decision, Knob, KnobKind, LayerKind, Need, SearchedModel, Wish, any_of

LIGHTEST_WITH_KERNELS = 8
"""Bits that keep accuracy and that runtimes have fast kernels for."""


@dataclass(frozen=True, kw_only=True)
class _Bits(LayerKind):
    neutral: Choice = FULL_PRECISION
    technique: str = "bits"
    is_counted: bool = True
    is_quantizing: bool = True
    is_numbered_when_off: bool = True
    is_listed_by_targets: bool = True

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        return bits_damage(float(choice))

    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        return ()


class _WeightBits(_Bits):
    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        for reduced in choices[self.key]:
            if reduced == BFLOAT16_BITS:  # which is multiplied with nothing else
                offered = BFLOAT16_BITS in choices[_ACTIVATIONS.key]
                yield {**bits, self.name: reduced, _ACTIVATIONS.name: BFLOAT16_BITS if offered else FULL_PRECISION}
            elif reduced != FULL_PRECISION:
                yield {**bits, self.name: reduced}


class _ActivationBits(_Bits):
    def read(self, policy: Policy, knob: Knob) -> Choice:
        decided = super().read(policy, knob)
        if decided not in knob.choices and BFLOAT16_BITS in knob.choices:
            return BFLOAT16_BITS  # with weights of other bits it is full precision
        return decided


@dataclass(frozen=True, kw_only=True)
class _FollowingBits(LayerKind):
    """A kind that some bits leave nothing to decide."""

    is_damaging: bool = False
    is_quantizing: bool = True

    def read(self, policy: Policy, knob: Knob) -> Choice:
        return any_of(knob, super().read(policy, knob))

    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        for name in choices[self.key]:
            if name != self.neutral:
                yield {**bits, self.name: name}


class _Codebook(_FollowingBits):
    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        return super().wishes(choices, {**bits, _WEIGHTS.name: min(choices[_WEIGHTS.key], key=float)})


class _OfLinearLayers(_FollowingBits):
    def decisions(self, model: SearchedModel, offered: Sequence[Choice]) -> Iterator[Decision]:
        for subject, layers in model.shared.items():
            if linear := tuple(layer.name for layer in layers if layer.kind == "linear"):
                yield Decision(subject, self, tuple(offered), linear)


class _FloatPrecision(KnobKind):
    def read(self, policy: Policy, knob: Knob) -> Choice:
        return policy.float_precision

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        draft.float_precision = cast(FloatPrecision, choice)

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        return 0.0 if choice == FLOAT32 else bits_damage(BFLOAT16_BITS)

    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        for precision in choices[self.key]:
            yield {self.name: precision}
            yield {**bits, self.name: precision}


class _GroupSize(_OfLinearLayers):
    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        grouped = [width for width in choices[_WEIGHTS.key] if width in GROUPED_BITS]
        if grouped and FULL_PRECISION in choices[_ACTIVATIONS.key]:
            weight_only = {_WEIGHTS.name: min(grouped, key=float), _ACTIVATIONS.name: FULL_PRECISION}
            yield from super().wishes(choices, weight_only)


_WEIGHTS = _WeightBits(
    name="weight_bits",
    key="weight_bits",
    type=Annotated[int, one_of(WEIGHT_BITS)],
    meaning="Of 2, 3, 4, 5, 6, 8, 16 and 32, as far as the target takes them; 16 is bfloat16.",
    unit="bits",
    label="weight bits",
)
_ACTIVATIONS = _ActivationBits(
    name="activation_bits",
    key="activation_bits",
    type=Annotated[int, one_of(ACTIVATION_BITS)],
    meaning="Of 4, 6, 8, 16 and 32; 16 is bfloat16, with 16-bit weights only.",
    unit="bits",
    label="activation bits",
)
FLOATS = _FloatPrecision(
    name="float_precision",
    key="float_precision",
    type=Annotated[str, one_of(FLOAT_PRECISIONS)],
    neutral=FLOAT32,
    meaning="Of all that stays in float: `float32`, `default` (as the runtime runs a file by itself), `bfloat16` or `float16`, as the target can.",
    label="float precision",
    subject="model",
    owner="floats",
    is_damaging=False,
    is_counted=True,
    is_quantizing=True,
)
KINDS: tuple[KnobKind, ...] = (
    _WEIGHTS,
    _ACTIVATIONS,
    _Codebook(
        name="codebook",
        key="codebooks",
        type=Annotated[str, one_of(CODEBOOKS)],
        neutral=UNIFORM,
        meaning="Values of weights of 8 bits and fewer, per layer: `uniform` (integers), `power_of_two` or `k_means`.",
        label="codebook",
        column="weight_bits",
    ),
    _OfLinearLayers(
        name="activation_range",
        key="activation_ranges",
        type=Annotated[str, one_of(RANGES)],
        neutral=STATIC,
        meaning="Per linear layer, range of 8-bit activations: `static` (calibrated) or `dynamic` (computed at run time).",
        label="activation range",
        column="activation_bits",
        is_counted=True,
        needs={"dynamic": Need("dynamic", "computes no ranges at run time")},
    ),
    FLOATS,
    _GroupSize(
        name="weight_group_size",
        key="weight_group_size",
        type=Annotated[int, one_of(GROUP_SIZES)],
        neutral=0,
        meaning="Per linear layer, inputs that share a scale of 4- or 8-bit weights where activations stay in floats: 32, 64, 128, or 0 for one scale per output channel.",
        unit="inputs",
        label="weight group size",
        column="weight_bits",
        is_counted=True,
        needs={size: Need("weight_groups", "takes no weights with scales by groups") for size in GROUP_SIZES if size},
    ),
)


def bits_damage(bits: float) -> float:
    """Nats that rounding to so many bits is guessed to cost: quantization noise falls fourfold per bit."""
    return 4.0 ** (2 - bits)


def lightest_bits(choices: Mapping[str, Sequence[Choice]]) -> dict[str, Choice]:
    """The bits to try first: 8 where they are offered, else the widest below full precision.

    Args:
        choices: study key -> what is offered.
    """
    found: dict[str, Choice] = {}
    for kind in (_WEIGHTS, _ACTIVATIONS):
        reduced = [bits for bits in choices[kind.key] if float(bits) < FULL_PRECISION]
        if reduced:
            found[kind.name] = LIGHTEST_WITH_KERNELS if LIGHTEST_WITH_KERNELS in reduced else max(reduced, key=float)
    return found


def fast_floats(choices: Mapping[str, Sequence[Choice]]) -> dict[str, Choice]:
    """The precision of floats to try first: the runtime's default where it is offered, else the first below float32.

    Args:
        choices: study key -> what is offered.
    """
    reduced = [precision for precision in choices[FLOATS.key] if precision != FLOAT32]
    return {FLOATS.name: DEFAULT if DEFAULT in reduced else reduced[0]} if reduced else {}
