"""The parts of a study file other than its space: budget, recovery, quantization, rungs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from ...core.errors import PolicyError
from ...core.threads import DeviceKind
from ...core.validation import MAX_COUNT, Count, CountOrNone, Ordered
from ...spaces.policies.quantization_scheme import Scheme
from ...spaces.policies.recovery import Positive, Recovery, Wanted


class Part(BaseModel):
    """A mapping of a study file: frozen, without unknown keys, and nothing converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def add_fields(part: type[Part], added: Mapping[str, FieldInfo]) -> None:
    """Give a part further keys, as if its class had been written with them."""
    part.__pydantic_fields__.update(added)
    part.model_rebuild(force=True)


def _settings(kind: type, *others: str) -> dict[str, FieldInfo]:
    """The keys that stand for the fields of a dataclass, with their types and defaults; `others` have keys elsewhere."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        f.name: FieldInfo.from_annotated_attribute(hints[f.name], f.default)
        for f in fields(kind)
        if f.name not in others
    }


class BudgetSpec(Part):
    """When the search ends: after so many trials or seconds, or once it has converged, whichever comes first.

    Attributes:
        trial_timeout_s: seconds after which a trial is ended, and is a failed one; None lets each take as long as it likes.
        trial_memory_gb: memory, in 10^9 bytes, above which a trial's process is ended, and the trial is a failed one; None for no limit.
        checkpoint_s: seconds after which a recovery is saved again; what was trained since is lost with its process. None saves none.
        patience: trials that may pass while the front's hypervolume grows by less than `convergence.LEAST_GROWTH`.
    """

    trials: Count | None = None
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    trial_timeout_s: Annotated[float, Field(gt=0)] | None = None
    trial_memory_gb: Annotated[float, Field(gt=0)] | None = None
    checkpoint_s: Annotated[float, Field(gt=0)] | None = 120.0
    patience: Count | None = None

    @model_validator(mode="after")
    def _some(self) -> BudgetSpec:
        if self.trials is None and self.timeout_s is None:
            raise ValueError("give trials, timeout_s or both")
        return self


AUTO = "auto"
"""What is found on the model when a study begins: the learning rate, and what trainings compute with."""

FOUND_ON_THE_MODEL = ("learning_rate", "channels_last", "mixed_precision")
"""Keys of `recovery` that may be left to it."""


def _rate(value: object) -> object:
    if value == AUTO or (isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"must be a number above 0 or {AUTO}, not {value!r}")


class RecoverySpec(Part):
    """Training around pruning and quantization: the settings of `Recovery`, whose epochs are a knob of the space."""

    batch_size: Count = 64
    learning_rate: Annotated[Literal["auto"] | Positive, BeforeValidator(_rate)] = 0.01
    mixed_precision: Wanted = False

    def settings(self, epochs: float = 1) -> Recovery:
        """The recovery of a policy that is trained for so many epochs; with defaults for "auto" until something is found."""
        open_keys = {key for key in ("learning_rate", "mixed_precision") if getattr(self, key) == AUTO}
        return Recovery(epochs, **self.model_dump(exclude={"batch_size", *open_keys}))

    @model_validator(mode="after")
    def _pipeline(self) -> RecoverySpec:
        try:
            self.settings()
        except PolicyError as error:
            raise ValueError(str(error)) from error
        return self


class QuantizationSpec(Part):
    """How the grids of quantized layers are chosen: the settings of `Scheme`; their bits are knobs of the space."""

    def scheme(self) -> Scheme:
        """The scheme of every policy."""
        return Scheme(**self.model_dump())


add_fields(RecoverySpec, _settings(Recovery, "epochs", "learning_rate", "mixed_precision"))
add_fields(QuantizationSpec, _settings(Scheme))


class ComputeSpec(Part):
    """What each worker computes on; lowering and timing happen where the target is.

    Attributes:
        device: where models are trained, calibrated and compared: "auto" is a CUDA GPU where there is one, and else where the
            workload's own model is.
        gpus: of a worker; below 1, several workers share one, and above, its recoveries are trained on all of them.
        cpus: of a worker, and its threads; None shares the machine's cores among the workers.
        data_workers: processes that read a worker's data ahead, where samples are read one by one; 0 reads them in between.
    """

    device: DeviceKind = "auto"
    gpus: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 1
    cpus: Annotated[float, Field(gt=0, le=MAX_COUNT)] | None = None
    data_workers: CountOrNone = 0

    @model_validator(mode="after")
    def _shares(self) -> ComputeSpec:
        for name, number in (("gpus", self.gpus), ("cpus", self.cpus)):
            if number is not None and number > 1 and number != int(number):
                raise ValueError(f"{name} is a whole number or a fraction below 1, not {number:g}")
        return self


class RungsSpec(Part):
    """Where a trial's recovery is looked at, and stopped unless it is among the best one in `reduction` that came so far.

    Attributes:
        recovery: rising fractions of the recovery's epochs; 0 looks at the model before any, and the last is 1. One that is
            less than an epoch looks at it after that part of the training data.
    """

    recovery: Ordered[Annotated[float, Field(ge=0, le=1)]] = (0.0, 0.25, 1.0)
    reduction: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 3

    @model_validator(mode="after")
    def _rising(self) -> RungsSpec:
        if not self.recovery or list(self.recovery) != sorted(set(self.recovery)) or self.recovery[-1] != 1:
            raise ValueError("fractions of the recovery rise and end with 1, as in [0, 0.25, 1]")
        return self

    def marks(self, epochs: float) -> tuple[float, ...]:
        """Epochs, or a part of the first, after which a recovery of so many is looked at, the whole one left out."""
        wanted = (fraction * epochs for fraction in self.recovery)
        found = (mark if mark < 1 else round(mark) for mark in wanted)
        return tuple(sorted({mark for mark in found if 0 < mark < epochs}))
