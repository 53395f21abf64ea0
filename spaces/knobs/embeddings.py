"""The knob of embeddings' tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

from ...core.validation import one_of
from ..policies.layer_policy import EMBEDDING_BITS, FULL_PRECISION
from ..policies.module_choices import Choice
from .kind import Decision, KnobKind, ModuleKind, Need, SearchedModel, Wish
from .quantization import LIGHTEST_WITH_KERNELS, bits_damage


class _EmbeddingBits(ModuleKind):
    def decisions(self, model: SearchedModel, offered: Sequence[Choice]) -> Iterator[Decision]:
        yield from self._layer_decisions(model.embeddings, offered)

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        return bits_damage(float(choice))

    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        if LIGHTEST_WITH_KERNELS in choices[self.key]:
            yield {**bits, self.name: LIGHTEST_WITH_KERNELS}


KINDS: tuple[KnobKind, ...] = (
    _EmbeddingBits(
        name="embedding_bits",
        key="embedding_bits",
        type=Annotated[int, one_of(EMBEDDING_BITS)],
        neutral=FULL_PRECISION,
        meaning="Of the table of each `nn.Embedding`: 32, or 8 or 4 with one scale per row. The file is smaller, and only rows that are looked up "
        "become floats.",
        unit="bits",
        label="embedding bits",
        policy_field="embeddings",
        column="weight_bits",
        technique="bits",
        is_counted=True,
        is_quantizing=True,
        needs={
            bits: Need("integer_tables", "looks rows up in tables of floats only")
            for bits in EMBEDDING_BITS
            if bits != FULL_PRECISION
        },
    ),
)
