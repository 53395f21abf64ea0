"""The space of policies that knobs span."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain, groupby, zip_longest
from types import MappingProxyType

from ..core.errors import PolicyError
from .choices import SpaceChoices
from .knobs.kind import Decision, Knob, KnobKind, SearchedModel, Wish
from .knobs.quantization import FLOATS, fast_floats, lightest_bits
from .knobs.registry import KNOB_KINDS
from .models.channel_groups import ChannelGroup
from .models.layers import Layer
from .policies.draft import PolicyDraft
from .policies.float_precision import FLOAT32
from .policies.policy import Choice, Policy
from .policies.quantization_scheme import Scheme
from .policies.recovery import Recovery


class Space:
    """All knobs of a workload on a target.

    A parameter mapping {knob name: choice} and a `Policy` describe the same point. Decisions with a single choice are no
    knobs; they hold in every policy.

    Args:
        recovery, scheme: settings that no knob decides.
        blocks: those that may be removed whole, in module order.
        ranking: the same, least important first; what `depth` removes.
        usual: what uniform policies choose where nothing else is wanted of a kind of knob and its neutral choice is not meant.

    Attributes:
        knobs: in the order of their names.
        groups: those that can lose channels, by the smallest `channel_multiple` offered.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        groups: Sequence[ChannelGroup],
        choices: SpaceChoices,
        recovery: Recovery = Recovery(),
        blocks: Sequence[str] = (),
        scheme: Scheme = Scheme(),
        ranking: Sequence[str] = (),
        usual: Wish = MappingProxyType({}),
    ) -> None:
        self.choices, self.recovery, self.scheme, self.usual = choices, recovery, scheme, dict(usual)
        self.layers = [layer for layer in layers if not self._is_kept(layer.name)]
        self.channel_multiple = int(min(choices["channel_multiple"]))
        held = [group for group in groups if not any(map(self._is_kept, group.layers))]
        self.groups = [group for group in held if group.can_lose(self.channel_multiple)]
        self.blocks, self.ranking = self._not_kept(blocks), self._not_kept(ranking)
        self._decided = _numbered(list(self._decisions()))
        self.knobs = [knob for knob in self._decided if len(knob.choices) > 1]
        self._known = {knob.name for knob in self.knobs}

    def policy(self, parameters: Mapping[str, Choice]) -> Policy:
        """The policy that `parameters` (knob name -> choice) describe.

        Raises:
            PolicyError: a knob is missing, unknown, or set to something it does not offer.
        """
        unknown = set(parameters) - self._known
        if unknown:
            raise PolicyError(f"unknown knob {sorted(unknown)[0]!r}")
        draft = PolicyDraft(self.recovery, self.scheme)
        for knob, kind in self._decided.items():
            kind.write(draft, knob.governs, _chosen(knob, parameters))
        return draft.policy()

    def parameters(self, policy: Policy) -> dict[str, Choice]:
        """The parameters that describe `policy`; the inverse of `policy`.

        Raises:
            PolicyError: the policy decides something this space does not offer.
        """
        parameters = {knob.name: self._decided[knob].read(policy, knob) for knob in self.knobs}
        if self.policy(parameters) != policy:
            raise PolicyError(f"policy {policy.digest} is not a point of this space")
        return parameters

    def uniform(self, wanted: Wish) -> Policy:
        """The policy that sets every knob of a kind to the same choice: to `wanted`, else to `usual`, else to neutral, else to the
        nearest to neutral offered."""
        wanted = {**self.usual, **wanted}
        return self.policy({
            knob.name: _nearest(knob, wanted.get(knob.kind, kind.neutral), kind.neutral)
            for knob, kind in self._decided.items()
            if knob.name in self._known
        })  # fmt: skip

    def anchors(self) -> list[Policy]:
        """Distinct uniform policies a search starts from: the uncompressed model first, then bits, then each structural choice
        recovered, in float and over the lightest bits that keep accuracy, the kinds of structure in turns; floats in the
        precision that is fast."""
        bits, floats = lightest_bits(self.choices), self.usual
        if floats.get(FLOATS.name, FLOAT32) == FLOAT32:
            floats = fast_floats(self.choices)
        quantizing = (kind.wishes(self.choices, bits) for kind in KNOB_KINDS.values() if kind.is_quantizing)
        wishes: list[Wish] = [floats, bits, *chain.from_iterable(quantizing), *self._structural_wishes(bits)]
        return list(dict.fromkeys(self.uniform(wish) for wish in ({}, *({**floats, **wish} for wish in wishes))))

    def _structural_wishes(self, bits: Wish) -> Iterator[Wish]:
        """What kinds of structure try, the kinds in turns."""
        kinds = [kind for kind in KNOB_KINDS.values() if not kind.is_quantizing]
        turns = zip_longest(*(kind.wishes(self.choices, bits) for kind in kinds))
        return (wish for turn in turns for wish in turn if wish is not None)

    def _is_kept(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.choices.keep)

    def _not_kept(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if not self._is_kept(name)]

    def _decisions(self) -> Iterator[Decision]:
        """All decisions in the order of their numbers: kind by kind, but layer by layer for those that every study decides
        of layers."""
        model = SearchedModel(self.layers, self.groups, self.blocks, self.ranking, self.choices.granularity)
        numbered = [
            kind for kind in KNOB_KINDS.values() if kind.is_numbered_when_off or not kind.is_off(self.choices[kind.key])
        ]
        for _, kinds in groupby(numbered, key=_turn):
            found = (kind.decisions(model, self.choices[kind.key]) for kind in kinds)
            yield from chain.from_iterable(zip(*found, strict=True))


def _numbered(decisions: Sequence[Decision]) -> dict[Knob, KnobKind]:
    digits = len(str(max(len(decisions) - 1, 0)))
    return {
        Knob(f"{index:0{digits}d}.{d.subject}.{d.kind.name}", d.kind.name, d.offered, d.governs): d.kind
        for index, d in enumerate(decisions)
    }


def _turn(kind: KnobKind) -> str:
    """Equal for kinds that take turns."""
    return "layer" if kind.subject == "layer" and kind.is_numbered_when_off else kind.name


def _chosen(knob: Knob, parameters: Mapping[str, Choice]) -> Choice:
    value = knob.choices[0] if len(knob.choices) == 1 else parameters.get(knob.name)
    if value is None or value not in knob.choices:
        raise PolicyError(f"{knob.name}: {value!r} is not one of {list(knob.choices)}")
    return value


def _nearest(knob: Knob, wanted: Choice, neutral: Choice) -> Choice:
    if wanted in knob.choices:
        return wanted
    numbers = [choice for choice in knob.choices if not isinstance(choice, str)]
    if isinstance(neutral, str) or not numbers:  # names have no order to be near in
        return neutral if neutral in knob.choices else knob.choices[0]
    target = neutral if isinstance(wanted, str) else wanted
    return min(numbers, key=lambda choice: abs(float(choice) - float(target)))
