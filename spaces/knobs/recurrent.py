"""The knob of recurrent layers' matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from ...core.validation import one_of
from ..policies.float_precision import FLOAT32
from ..policies.module_choices import Choice
from ..policies.recurrent_weights import DYNAMIC_INT8, INT8_BITS, RECURRENT_WEIGHTS
from .kind import Decision, KnobKind, ModuleKind, Need, SearchedModel, Wish
from .quantization import bits_damage

if TYPE_CHECKING:
    from ..models.layers import Layer


class _RecurrentWeights(ModuleKind):
    def why_not(self, choice: Choice, layer: Layer) -> str | None:
        return "only LSTMs have a kernel for it" if choice == DYNAMIC_INT8 and layer.kind != "lstm" else None

    def decisions(self, model: SearchedModel, offered: Sequence[Choice]) -> Iterator[Decision]:
        yield from self._layer_decisions({layer.name: [layer] for layer in model.recurrent}, offered)

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        return 0.0 if choice == FLOAT32 else bits_damage(INT8_BITS)

    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        for choice in choices[self.key]:
            if choice != self.neutral:
                yield {**bits, self.name: choice}


KINDS: tuple[KnobKind, ...] = (
    _RecurrentWeights(
        name="recurrent_weights",
        key="recurrent_weights",
        type=Annotated[str, one_of(RECURRENT_WEIGHTS)],
        neutral=FLOAT32,
        meaning="Of each `nn.GRU`, `nn.LSTM` and `nn.RNN`: `float32`, `int8` (stored in 8 bits, multiplied in float) or `dynamic` (8 bits, "
        "what they multiply quantized at run time; LSTMs on ONNX Runtime).",
        label="recurrent weights",
        policy_field="recurrent",
        column="weight_bits",
        technique="bits",
        is_counted=True,
        is_quantizing=True,
        needs={DYNAMIC_INT8: Need("dynamic_lstm", "has no integer kernel for recurrent layers")},
    ),
)
