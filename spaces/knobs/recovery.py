"""The recovery knob: how long a compressed model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from ...core.validation import MAX_COUNT
from ..policies.checks import epochs_of
from ..policies.draft import PolicyDraft
from ..policies.policy import Choice, Policy
from .kind import Knob, KnobKind, any_of

RECOVERY_KIND = "recovery_epochs"
"""Name of the kind whose choices repair damage instead of doing any; also its key in study files."""


Epochs = Annotated[float, Field(ge=0, le=MAX_COUNT), AfterValidator(epochs_of)]
"""Passes over the training data, of which the last may be a part."""


class _RecoveryEpochs(KnobKind):
    def read(self, policy: Policy, knob: Knob) -> Choice:
        return any_of(knob, policy.recovery.epochs)  # a pipeline without training has none

    def write(self, draft: PolicyDraft, governs: Sequence[str], choice: Choice) -> None:
        draft.epochs = float(choice)

    def canonical(self, choice: Choice) -> Choice:
        return epochs_of(float(choice))

    def guess(self, choice: Choice, choices: Sequence[Choice]) -> float:
        return float(choice)  # it repairs damage, and only the order is read


KINDS: tuple[KnobKind, ...] = (
    _RecoveryEpochs(
        name=RECOVERY_KIND,
        key=RECOVERY_KIND,
        type=Epochs,
        neutral=0,
        meaning="Training after compression.",
        unit="epochs",
        label="recovery epochs",
        subject="model",
        owner="recovery",
        is_damaging=False,
        is_counted=True,
        is_numbered_when_off=True,
    ),
)
