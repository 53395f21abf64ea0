"""The space of a study file: one key for every kind of knob there is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from ...core.validation import CountOrNone, Listed, Text
from ...spaces.choices import SpaceChoices
from ...spaces.knobs.kind import Granularity, KnobKind
from ...spaces.knobs.recovery import RECOVERY_KIND
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.policies.checks import epochs_of
from ...spaces.policies.layer_policy import BFLOAT16_BITS
from ...spaces.policies.policy import Choice
from .parts import Part, add_fields


class SpaceSpec(Part):
    """The choices of each knob; a knob not named is off, which is its only choice, or as the preset has it.

    The keys of knobs are those of `spaces.knobs.registry.KNOB_KINDS`.

    Attributes:
        preset: a family of `spaces.presets` whose choices hold where none are given, "auto" for the model's own, or "none".
        granularity: how many layers share one knob for weight bits, activation bits and weight sparsity.
        keep: `fnmatch` patterns of layers left at full precision and density, their channels never removed.
        recovery_steps: steps of the optimizer in place of `recovery_epochs`, which they are turned into once the data are known.
    """

    preset: Literal["none", "auto", "cnn", "transformer", "recurrent"] = "none"
    granularity: Granularity = "layer"
    keep: Listed[Text] = ()
    recovery_steps: Annotated[Listed[CountOrNone], Field(min_length=1)] | None = None

    def offered(self, key: str) -> tuple[Choice, ...]:
        """What is offered under the key of a kind of knob."""
        return getattr(self, key)

    def choices(self) -> SpaceChoices:
        """The choices as a space takes them."""
        offered: dict[str, Any] = {kind.key: self.offered(kind.key) for kind in KNOB_KINDS.values()}
        return SpaceChoices(self.granularity, self.keep, **offered)

    @model_validator(mode="after")
    def _whole_bfloat16(self) -> SpaceSpec:
        given = self.preset == "none" or "weight_bits" in self.model_fields_set
        weights, activations = self.offered("weight_bits"), self.offered("activation_bits")
        if BFLOAT16_BITS in activations and given and BFLOAT16_BITS not in weights:
            raise ValueError(
                f"activation_bits: {BFLOAT16_BITS} is bfloat16, of layers whose weights are too; add it to weight_bits"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> SpaceSpec:
        if self.recovery_steps is not None and RECOVERY_KIND in self.model_fields_set:
            raise ValueError(f"give {RECOVERY_KIND} or recovery_steps, not both")
        return self

    def in_epochs(self, steps_of_an_epoch: int) -> SpaceSpec:
        """This space with `recovery_steps` as the epochs that they are."""
        epochs = tuple(epochs_of(steps / steps_of_an_epoch) for steps in self.recovery_steps or ())
        return self.model_copy(update={RECOVERY_KIND: epochs, "recovery_steps": None}) if epochs else self

    def key_given(self, key: str) -> str:
        """The key whose value in the study file became that of `key`: `recovery_steps` may have become epochs."""
        is_turned = self.recovery_steps is None and "recovery_steps" in self.model_fields_set
        return "recovery_steps" if key == RECOVERY_KIND and is_turned else key

    @model_validator(mode="after")
    def _not_empty(self) -> SpaceSpec:
        keys = [kind.key for kind in KNOB_KINDS.values()]
        offered = [*(self.offered(key) for key in keys), self.recovery_steps or (0,)]
        if self.preset == "none" and all(len(choices) == 1 for choices in offered):
            raise ValueError(f"empty space: give at least one of {', '.join(keys)} more than one choice")
        return self


def add_key(kind: KnobKind) -> None:
    """Give spaces of study files the key of a kind of knob."""
    annotation: Any = Annotated[
        Listed[kind.type], Field(min_length=1, description=kind.meaning, json_schema_extra={"unit": kind.unit})
    ]
    add_fields(SpaceSpec, {kind.key: FieldInfo.from_annotated_attribute(annotation, (kind.neutral,))})
