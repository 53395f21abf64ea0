"""Knobs, and the space of policies they span."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from ..core.errors import PolicyError
from .models.channel_groups import ChannelGroup
from .models.layers import Layer
from .policies.checks import DECIMALS
from .policies.layer_policy import BFLOAT16_BITS, FULL_PRECISION, STATIC, UNIFORM
from .policies.operators import DENSE, Operator
from .policies.policy import LayerPolicy, Policy, Recovery
from .policies.pruning import Pruning
from .policies.quantization_scheme import Scheme
from .policies.sparsity import Sparsity

Choice = int | float | str
KnobKind = Literal[
    "width", "channels", "weight_bits", "activation_bits", "sparsity", "recovery_epochs",
    "criterion", "scope", "steps", "reduction", "removed", "operator", "codebook", "activation_range",
    "depth",
]  # fmt: skip
Granularity = Literal["layer", "block", "type", "model"]
LAYER_KNOBS: tuple[KnobKind, ...] = (
    "weight_bits",
    "activation_bits",
    "sparsity",
    "operator",
    "codebook",
    "activation_range",
)
FOLLOWING_BITS: tuple[KnobKind, ...] = ("codebook", "activation_range")
"""Those that some bit-widths leave nothing to decide."""

PRUNING_KNOBS: tuple[KnobKind, ...] = ("criterion", "scope", "steps", "reduction")
NEUTRAL: dict[KnobKind, Choice] = {
    "width": 1.0,
    "channels": 0.0,
    "weight_bits": FULL_PRECISION,
    "activation_bits": FULL_PRECISION,
    "sparsity": 0.0,
    "recovery_epochs": 0,
    "criterion": "l2",
    "scope": "layer",
    "steps": 1,
    "reduction": "drop",
    "removed": 0,
    "operator": DENSE,
    "codebook": UNIFORM,
    "activation_range": STATIC,
    "depth": 1.0,
}
"""What each kind of knob is set to in the uncompressed model."""


@dataclass(frozen=True)
class Knob:
    """One choice of the space.

    Attributes:
        name: unique and sortable, e.g. "07.blocks.2.conv1.weight_bits".
        kind: what the choice decides.
        choices: at least two distinct values.
        governs: layers (or the one group for "channels", the one block for "removed", the blocks for "depth") the choice
            applies to; empty for the whole model.
    """

    name: str
    kind: KnobKind
    choices: tuple[Choice, ...]
    governs: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpaceChoices:
    """What a study offers to every layer and group; a single neutral choice switches a technique off."""

    granularity: Granularity = "layer"
    weight_bits: tuple[int, ...] = (FULL_PRECISION,)
    activation_bits: tuple[int, ...] = (FULL_PRECISION,)
    channel_sparsity: tuple[float, ...] = (0.0,)
    weight_sparsity: tuple[Sparsity, ...] = (0.0,)
    width: tuple[float, ...] = (1.0,)
    recovery_epochs: tuple[int, ...] = (0,)
    criterion: tuple[str, ...] = ("l2",)
    sparsity_scope: tuple[str, ...] = ("layer",)
    pruning_steps: tuple[int, ...] = (1,)
    channel_reduction: tuple[str, ...] = ("drop",)
    removed_blocks: tuple[int, ...] = (0,)
    operators: tuple[str, ...] = (DENSE,)
    codebooks: tuple[str, ...] = (UNIFORM,)
    activation_ranges: tuple[str, ...] = (STATIC,)
    depth: tuple[float, ...] = (1.0,)
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("channel_sparsity", "weight_sparsity", "width", "depth"):
            object.__setattr__(self, name, tuple(map(_canonical, getattr(self, name))))


class Space:
    """All knobs of a workload on a target.

    A parameter mapping {knob name: choice} and a `Policy` describe the same point. Decisions with a single choice are no
    knobs; they hold in every policy.

    Args:
        blocks: those that may be removed whole, in module order.
        ranking: the same, least important first; what `depth` removes.
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
    ) -> None:
        self.choices = choices
        self.layers = [layer for layer in layers if not _kept_back(layer.name, choices.keep)]
        self.groups = [group for group in groups if not any(_kept_back(name, choices.keep) for name in group.layers)]
        self.blocks = [name for name in blocks if not _kept_back(name, choices.keep)]
        self.ranking = [name for name in ranking if not _kept_back(name, choices.keep)]
        self.recovery, self.scheme = recovery, scheme
        decisions = list(self._decisions())
        digits = len(str(max(len(decisions) - 1, 0)))
        named = [
            Knob(f"{index:0{digits}d}.{subject}.{kind}", kind, offered, governs)
            for index, (subject, kind, offered, governs) in enumerate(decisions)
        ]
        self.knobs = [knob for knob in named if len(knob.choices) > 1]
        self._fixed = {knob.name: knob.choices[0] for knob in named if len(knob.choices) == 1}
        self._all = named

    def policy(self, parameters: Mapping[str, Choice]) -> Policy:
        """The policy that `parameters` (knob name -> choice) describe.

        Raises:
            PolicyError: a knob is missing, unknown, or set to something it does not offer.
        """
        unknown = set(parameters) - {knob.name for knob in self.knobs}
        if unknown:
            raise PolicyError(f"unknown knob {sorted(unknown)[0]!r}")
        values: dict[Knob, Any] = {knob: self._value(knob, parameters) for knob in self._all}
        layers: dict[str, dict[str, Any]] = {layer.name: {} for layer in self.layers}
        for knob, value in values.items():
            if knob.kind in LAYER_KNOBS:
                for name in knob.governs:
                    layers[name][knob.kind] = value
        single = {knob.kind: value for knob, value in values.items() if knob.kind in ("width", "recovery_epochs")}
        pruning = {knob.kind: value for knob, value in values.items() if knob.kind in PRUNING_KNOBS}
        removed = [knob.governs[0] for knob, value in values.items() if knob.kind == "removed" and value]
        removed += [name for knob, value in values.items() if knob.kind == "depth" for name in self._beyond(value)]
        return Policy(
            width=single["width"],
            channels={knob.governs[0]: value for knob, value in values.items() if knob.kind == "channels"},
            layers={name: LayerPolicy(**decisions) for name, decisions in layers.items()},
            recovery=replace(self.recovery, epochs=single["recovery_epochs"]),
            pruning=Pruning(**pruning),
            removed_blocks=tuple(removed),
            scheme=self.scheme,
        )

    def parameters(self, policy: Policy) -> dict[str, Choice]:
        """The parameters that describe `policy`; the inverse of `policy`.

        Raises:
            PolicyError: the policy decides something this space does not offer.
        """
        parameters = {
            knob.name: self._depth_of(policy) if knob.kind == "depth" else _decision(knob, policy)
            for knob in self.knobs
        }
        if self.policy(parameters) != policy:
            raise PolicyError(f"policy {policy.digest} is not a point of this space")
        return parameters

    def uniform(self, wanted: Mapping[KnobKind, Choice]) -> Policy:
        """The policy that sets every knob of a kind alike: to `wanted`, else to neutral, else to the nearest to neutral offered."""
        return self.policy(
            {knob.name: _nearest(knob, wanted.get(knob.kind, NEUTRAL[knob.kind])) for knob in self.knobs}
        )

    def anchors(self) -> list[Policy]:
        """Distinct uniform policies a search starts from: the uncompressed model first, then int8 and what is below it, then
        each structural choice recovered, in float and over int8: which of them is faster depends on the machine."""
        bits = self._lightest_real_bits()
        wishes: list[dict[KnobKind, Choice]] = [{}, bits]
        for reduced in self.choices.weight_bits:
            if reduced < FULL_PRECISION:
                wishes.append({**bits, **self._beside(reduced)})
        fewest: dict[KnobKind, Choice] = {**bits, "weight_bits": min(self.choices.weight_bits)}
        for name in self.choices.codebooks:
            if name != UNIFORM:
                wishes.append({**fewest, "codebook": name})
        for name in self.choices.activation_ranges:
            wishes.append({**bits, "activation_range": name})
        # Removing the same share of every group is a width; the architecture need not be tried twice.
        widths = {round(1 - width, 6) for width in self.choices.width}
        kinds: dict[KnobKind, tuple[Choice, ...]] = {
            "width": self.choices.width,
            "channels": tuple(share for share in self.choices.channel_sparsity if share not in widths),
            "sparsity": self.choices.weight_sparsity,
            "operator": self.choices.operators,
            "depth": self.choices.depth,
        }
        longest = max(self.choices.recovery_epochs)
        for kind, offered in kinds.items():
            for value in offered:
                if value != NEUTRAL[kind]:
                    wishes.append({kind: value, "recovery_epochs": longest})
                    wishes.append({**bits, kind: value, "recovery_epochs": longest})
        return list(dict.fromkeys(self.uniform(wish) for wish in wishes))

    def _lightest_real_bits(self) -> dict[KnobKind, Choice]:
        """8 bits where offered, which keeps accuracy and has kernels; else the widest below full precision."""
        bits: dict[KnobKind, Choice] = {}
        offers: dict[KnobKind, tuple[int, ...]] = {
            "weight_bits": self.choices.weight_bits,
            "activation_bits": self.choices.activation_bits,
        }
        for kind, offered in offers.items():
            reduced = [b for b in offered if b < FULL_PRECISION]
            if reduced:
                bits[kind] = 8 if 8 in reduced else max(reduced)
        return bits

    def _beside(self, weight_bits: int) -> dict[KnobKind, Choice]:
        """Weight bits with the activation bits they are best tried with: bfloat16 is multiplied with nothing else."""
        if weight_bits != BFLOAT16_BITS:
            return {"weight_bits": weight_bits}
        offered = BFLOAT16_BITS in self.choices.activation_bits
        return {"weight_bits": weight_bits, "activation_bits": BFLOAT16_BITS if offered else FULL_PRECISION}

    def _decisions(self) -> Iterable[tuple[str, KnobKind, tuple[Choice, ...], tuple[str, ...]]]:
        yield "student", "width", self.choices.width, ()
        yield "recovery", "recovery_epochs", self.choices.recovery_epochs, ()
        for group in self.groups:
            yield group.name, "channels", self.choices.channel_sparsity, (group.name,)
        for subject, members in self._shared().items():
            names = tuple(layer.name for layer in members)
            yield subject, "weight_bits", self.choices.weight_bits, names
            yield subject, "activation_bits", self.choices.activation_bits, names
            sparsities = [
                s for s in self.choices.weight_sparsity if s != "2:4" or all(m.sparsifiable_2_4 for m in members)
            ]
            yield subject, "sparsity", tuple(sparsities) or (NEUTRAL["sparsity"],), names
        yield from self._structural_decisions()

    def _structural_decisions(self) -> Iterable[tuple[str, KnobKind, tuple[Choice, ...], tuple[str, ...]]]:
        """Those that older studies did not know: last, and only where asked for, so that their knobs keep their names."""
        settings: dict[KnobKind, tuple[Choice, ...]] = {
            "criterion": self.choices.criterion,
            "scope": self.choices.sparsity_scope,
            "steps": self.choices.pruning_steps,
            "reduction": self.choices.channel_reduction,
        }
        for kind, offered in settings.items():
            if offered != (NEUTRAL[kind],):
                yield "pruning", kind, offered, ()
        if self.choices.removed_blocks != (0,):
            for name in self.blocks:
                yield name, "removed", self.choices.removed_blocks, (name,)
        if self.choices.operators != (DENSE,):
            for layer in self.layers:
                yield layer.name, "operator", _fitting(layer, self.choices.operators), (layer.name,)
        if self.choices.codebooks != (UNIFORM,):
            for subject, members in self._shared().items():
                yield subject, "codebook", self.choices.codebooks, tuple(layer.name for layer in members)
        if self.choices.activation_ranges != (STATIC,):
            for subject, members in self._shared().items():
                if linear := tuple(layer.name for layer in members if layer.kind == "linear"):
                    yield subject, "activation_range", self.choices.activation_ranges, linear
        if self.choices.depth != (1.0,):
            yield "student", "depth", self._depths(), tuple(self.ranking)

    def _depths(self) -> tuple[float, ...]:
        """Those of the depths offered that keep different blocks."""
        kept = {len(self._beyond(depth)): depth for depth in reversed(self.choices.depth)}
        return tuple(depth for depth in self.choices.depth if depth in kept.values())

    def _beyond(self, depth: float) -> list[str]:
        """The blocks that a depth, the fraction kept of those that may go, removes."""
        return self.ranking[: round((1 - depth) * len(self.ranking))]

    def _depth_of(self, policy: Policy) -> float:
        """The least depth offered all of whose removed blocks `policy` removes."""
        gone = set(policy.removed_blocks)
        return min((d for d in self._depths() if gone.issuperset(self._beyond(d))), default=self.choices.depth[0])

    def _shared(self) -> dict[str, list[Layer]]:
        """Layers by the knob they share."""
        subject = {
            "layer": lambda layer: layer.name,
            "block": lambda layer: layer.block or layer.name,
            "type": lambda layer: layer.kind,
            "model": lambda layer: "model",
        }[self.choices.granularity]
        shared: dict[str, list[Layer]] = {}
        for layer in self.layers:
            shared.setdefault(subject(layer), []).append(layer)
        return shared

    def _value(self, knob: Knob, parameters: Mapping[str, Choice]) -> Choice:
        value = self._fixed.get(knob.name, parameters.get(knob.name))
        if value not in knob.choices:
            raise PolicyError(f"{knob.name}: {value!r} is not one of {list(knob.choices)}")
        return value


def _canonical(choice: Sparsity) -> Sparsity:
    """A fraction as policies hold it, so that a policy's decision is found among the choices again."""
    return choice if isinstance(choice, str) else round(float(choice), DECIMALS)


def _kept_back(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _fitting(layer: Layer, operators: Sequence[str]) -> tuple[str, ...]:
    fitting = [name for name in operators if Operator.parse(name).why_not(layer.shape, layer.groups) is None]
    return tuple(fitting) or (DENSE,)


def _decision(knob: Knob, policy: Policy) -> Choice:
    if knob.kind in PRUNING_KNOBS:
        decided = getattr(policy.pruning, knob.kind)
        # A setting that decides nothing is not in the policy, and any choice describes it.
        return decided if decided in knob.choices else knob.choices[0]
    if knob.kind == "removed":
        return int(knob.governs[0] in policy.removed_blocks)
    if knob.kind == "width":
        return policy.width
    if knob.kind == "recovery_epochs":
        epochs = policy.recovery.epochs
        return epochs if epochs in knob.choices else knob.choices[0]  # a pipeline without training has none
    if knob.kind == "channels":
        return policy.channels.get(knob.governs[0], 0.0)
    decided = getattr(policy.layer(knob.governs[0]), knob.kind)
    if knob.kind == "activation_bits" and decided not in knob.choices and BFLOAT16_BITS in knob.choices:
        return BFLOAT16_BITS  # beside weights of other bits it is full precision
    # Where a layer's bits leave a codebook or a range nothing to decide, any choice describes that.
    return decided if decided in knob.choices or knob.kind not in FOLLOWING_BITS else knob.choices[0]


def _nearest(knob: Knob, wanted: Choice) -> Choice:
    if wanted in knob.choices:
        return wanted
    neutral = NEUTRAL[knob.kind]
    if isinstance(neutral, str):  # names have no order to be near in
        return neutral if neutral in knob.choices else knob.choices[0]
    numbers = [choice for choice in knob.choices if not isinstance(choice, str)]
    target = neutral if isinstance(wanted, str) else wanted
    return min(numbers or knob.choices, key=lambda choice: abs(float(choice) - float(target)))
