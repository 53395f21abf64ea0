"""The knob of embeddings' tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

from ...core.validation import one_of
from ..policies.draft import PolicyDraft
from ..policies.embeddings import EMBEDDING_BITS
from ..policies.layer_policy import FULL_PRECISION
from ..policies.policy import Choice, Policy
from .kind import Decision, Knob, KnobKind, Need, SearchedModel, Wish
from .quantization import LIGHTEST_WITH_KERNELS, bits_damage


class _EmbeddingBits(KnobKind):
    def read(self, policy: Policy, knob: Knob) -> Choice:
        return policy.embeddings.get(knob.governs[0], self.neutral)

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        draft.embeddings |= dict.fromkeys(governs, int(choice))

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
        subject="layer",
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
