"""What a kind of knob is: everything that the rest of slimfront asks about one kind of choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..policies.checks import rounded
from ..policies.draft import PolicyDraft
from ..policies.policy import Choice, Policy

if TYPE_CHECKING:  # torch takes seconds to import, and a study file is read without it
    from torch import Tensor, nn

    from ..models.channel_groups import ChannelGroup
    from ..models.layers import Layer

T = TypeVar("T")

Granularity = Literal["layer", "block", "type", "model"]
Subject = Literal["model", "group", "layer", "block", "ranking"]
Wish = Mapping[str, Choice]
"""Name of a kind -> the choice that all its knobs are set to."""


@dataclass(frozen=True)
class Knob:
    """One decision of a space, with the choices it offers.

    Attributes:
        name: unique and sortable, e.g. "07.blocks.2.conv1.weight_bits"; what its parameter is called.
        kind: the name of a `KnobKind`: what is decided.
        choices: what it offers.
        governs: layers, group or blocks that the decision applies to; empty for the whole model.
    """

    name: str
    kind: str
    choices: tuple[Choice, ...]
    governs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Need:
    """Something a runtime must be able to do for a choice.

    Attributes:
        capability: a yes-or-no attribute of `hardware_profiles.runtimes.registry.RuntimeEntry`.
        lacking: what a runtime without it does not do, in words that follow "which".
    """

    capability: str
    lacking: str


@dataclass(frozen=True)
class SearchedModel:
    """The parts of a model that a space decides on.

    Attributes:
        blocks: those that may be removed whole, in module order.
        ranking: the same, least important first.
        granularity: which layers share one knob.
    """

    layers: Sequence[Layer]
    groups: Sequence[ChannelGroup]
    blocks: Sequence[str]
    ranking: Sequence[str]
    granularity: Granularity

    @cached_property
    def shared(self) -> Mapping[str, Sequence[Layer]]:
        """What a shared knob is named after -> the convolutions and linear layers that share it."""
        return self._sharing([layer for layer in self.layers if layer.is_product])

    @property
    def embeddings(self) -> Mapping[str, Sequence[Layer]]:
        """The same of the embeddings."""
        return self._sharing([layer for layer in self.layers if layer.is_embedding])

    def _sharing(self, layers: Sequence[Layer]) -> Mapping[str, Sequence[Layer]]:
        subject = {
            "layer": lambda layer: layer.name,
            "block": lambda layer: layer.block or layer.name,
            "type": lambda layer: layer.kind,
            "model": lambda layer: "model",
        }[self.granularity]
        found: dict[str, list[Layer]] = {}
        for layer in layers:
            found.setdefault(subject(layer), []).append(layer)
        return found

    @property
    def recurrent(self) -> Sequence[Layer]:
        """The recurrent layers, whose matrices are decided on together and by a knob of their own."""
        return [layer for layer in self.layers if layer.is_recurrent]


@dataclass(frozen=True)
class Decision:
    """What a space decides of one subject: a knob where more than one choice is offered, else what holds everywhere."""

    subject: str
    kind: KnobKind
    offered: tuple[Choice, ...]
    governs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KnobKind(ABC):
    """One kind of knob: what a study file calls it, what it decides, and where a policy holds it.

    Attributes:
        name: what its parameters' names end in, and what policies and tables know it by.
        key: of the study file's `space`.
        type: annotation that pydantic checks one choice in a study file with.
        neutral: what the uncompressed model is set to.
        meaning: one line of Markdown for the reference of study files.
        unit: of a choice that is a number, for the same page.
        label: a few words for tables.
        subject: what one knob is for: the whole "model", each channel "group", the "layer"s that share a knob, each removable
            "block", or the blocks' "ranking" by importance.
        owner: what a knob of the whole model is named after.
        column: name of the kind in whose column of a layer's row tables show a choice that is not neutral.
        technique: the row of a space's bounds that counts it; "" where it lowers no count.
        is_damaging: whether a choice does damage on its own; other kinds only change how much damage those do.
        is_counted: whether FLOPs, BOPs, parameters and bytes of any choice can be counted without building the model.
        is_quantizing: whether it decides what numbers are stored and computed with, not what is left of the model.
        is_numbered_when_off: whether parameters are numbered as if it were searched where a study leaves it off, as databases
            of the first studies have it.
        is_listed_by_targets: whether a target's card lists the choices it takes, under the same key.
        needs: choice -> what a runtime must be able to do for it.
    """

    name: str
    key: str
    type: Any
    neutral: Choice
    meaning: str
    label: str
    subject: Subject
    owner: str = "model"
    unit: str = ""
    column: str = "sparsity"
    technique: str = ""
    is_damaging: bool = True
    is_counted: bool = False
    is_quantizing: bool = False
    is_numbered_when_off: bool = False
    is_listed_by_targets: bool = False
    needs: Mapping[Choice, Need] = field(default_factory=dict)

    @abstractmethod
    def read(self, policy: Policy, knob: Knob) -> Choice:
        """What `policy` decides for a knob of this kind; any of its choices where the policy leaves it nothing to decide."""

    @abstractmethod
    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        """Put a decision into a policy."""

    def canonical(self, choice: Choice) -> Choice:
        """A choice as policies hold it: fractions are rounded, so that a policy's decision is found among the choices."""
        return rounded(choice) if isinstance(self.neutral, float) and not isinstance(choice, str) else choice

    def is_off(self, offered: Sequence[Choice]) -> bool:
        """Whether nothing but the neutral choice is offered."""
        return tuple(offered) == (self.neutral,)

    def why_not(self, choice: Choice, layer: Layer) -> str | None:
        """Why a choice is not for a layer; None where it is."""
        return None

    def decisions(self, model: SearchedModel, offered: Sequence[Choice]) -> Iterator[Decision]:
        """What a space decides by this kind of knob, where a study offers these choices."""
        if self.subject == "group":
            named = [(group.name, (group.name,)) for group in model.groups]
        elif self.subject == "block":
            named = [(name, (name,)) for name in model.blocks]
        elif self.subject == "layer":
            yield from self._layer_decisions(model.shared, offered)
            return
        else:
            named = [(self.owner, tuple(model.ranking) if self.subject == "ranking" else ())]
        for subject, governs in named:
            yield Decision(subject, self, tuple(offered), governs)

    def _layer_decisions(self, shared: Mapping[str, Sequence[Layer]], offered: Sequence[Choice]) -> Iterator[Decision]:
        """One decision per set of layers, offering the choices valid for all of them.

        A layer that only the neutral choice is valid for leaves the whole set that choice.
        """
        for subject, layers in shared.items():
            fitting = [c for c in offered if all(self.why_not(c, layer) is None for layer in layers)]
            yield Decision(subject, self, tuple(fitting) or (self.neutral,), tuple(layer.name for layer in layers))

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        """A prior for the choice's damage in nats. Once damage is measured, only ratios of priors matter.

        Choices that are not numbers are guessed by their position in the list.
        """
        return steps_damage(choice, choices, list(choices).index(self.neutral) if self.neutral in choices else 0)

    def furthest(self, choices: Sequence[Choice], weights: Sequence[Tensor]) -> Choice:
        """The choice that compresses a model most.

        Args:
            weights: of the layers that a knob governs.
        """
        return max(choices, key=lambda choice: self.guess(choice, choices))

    def wishes(self, choices: Mapping[str, Sequence[Choice]], bits: Wish) -> Iterable[Wish]:
        """Uniform policies that a search starts from: each choice with the longest recovery, in float and over `bits`, since
        which of them is faster depends on the machine. The middle choice comes first, then those halfway to either end, so
        that a search with time for few of them has seen the whole range.

        Args:
            choices: study key -> what is offered.
            bits: the lightest bits that keep accuracy.
        """
        longest = max(choices["recovery_epochs"])
        others = [choice for choice in choices[self.key] if choice != self.neutral] if self.is_damaging else []
        for choice in by_halves(others):
            yield {self.name: choice, "recovery_epochs": longest}
            yield {**bits, self.name: choice, "recovery_epochs": longest}


def by_halves(choices: Sequence[T]) -> list[T]:
    """The middle choice, then the middle of what lies on either side of it, and so on.

    >>> by_halves([0.75, 0.5, 0.25]), by_halves([1, 2, 3, 4, 5, 6, 7])
    ([0.5, 0.75, 0.25], [4, 2, 6, 1, 3, 5, 7])
    """
    found, parts = [], deque([choices])
    while parts:
        if part := parts.popleft():
            middle = len(part) // 2
            found.append(part[middle])
            parts += [part[:middle], part[middle + 1 :]]
    return found


def steps_damage(choice: Choice, choices: Sequence[Choice], neutral: int) -> float:
    """A prior for the damage in nats, from the choice's distance in the list from the neutral one."""
    steps = abs(list(choices).index(choice) - neutral) / max(1, len(choices) - 1)
    return 0.25 * steps**2


def any_of(knob: Knob, decided: Choice) -> Choice:
    """The decided choice if offered; otherwise the first one offered, since the knob has no effect here."""
    return decided if decided in knob.choices or not knob.choices else knob.choices[0]


@dataclass(frozen=True, kw_only=True)
class LayerKind(KnobKind):
    """A kind whose decisions are stored in the field of `LayerPolicy` that has its name."""

    subject: Subject = "layer"

    def read(self, policy: Policy, knob: Knob) -> Choice:
        return getattr(policy.layer(knob.governs[0]), self.name)

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        for layer in governs:
            draft.layers[layer][self.name] = choice


@dataclass(frozen=True, kw_only=True)
class ModuleKind(KnobKind):
    """A kind whose decisions are a field of `Policy` of its own: module -> choice, where it is not neutral.

    Attributes:
        policy_field: a name in `policies.policy.MODULE_CHOICES`.
    """

    policy_field: str
    subject: Subject = "layer"

    def read(self, policy: Policy, knob: Knob) -> Choice:
        return policy.module_choices[self.policy_field].get(knob.governs[0], self.neutral)

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        draft.module_choices[self.policy_field] |= dict.fromkeys(governs, choice)


@dataclass(frozen=True, kw_only=True)
class PruningKind(KnobKind):
    """A kind whose decisions are the field of `Pruning` of its name: a setting of all that is pruned."""

    subject: Subject = "model"
    owner: str = "pruning"
    is_damaging: bool = False
    is_counted: bool = True

    def read(self, policy: Policy, knob: Knob) -> Choice:
        return any_of(knob, getattr(policy.pruning, self.name))

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        draft.pruning[self.name] = choice


@dataclass(frozen=True, kw_only=True)
class ExtensionKind(KnobKind):
    """A kind whose decisions stand in a policy's `extensions`, under its name: for kinds from outside slimfront."""

    @abstractmethod
    def compress(self, model: nn.Module, policy: Policy) -> None:
        """Do to a pruned model, in place, what `policy` decides by this kind; it is recovered and quantized afterwards."""

    def read(self, policy: Policy, knob: Knob) -> Choice:
        return policy.extensions.get(self.name, {}).get(next(iter(knob.governs), ""), self.neutral)

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        for subject in governs or ("",):
            draft.extensions[self.name][subject] = choice
            if choice == self.neutral:
                del draft.extensions[self.name][subject]
