"""The study file: what is searched, on which target, for which objectives, within which budget.

Read from YAML into a frozen `StudySpec`; every problem is one line naming the file and the key.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from ...core.errors import StudyFileError
from ...core.metrics import METRICS
from ...core.validation import MAX_COUNT, Listed, Name, Text, first_problem, shortened, suggestion
from ...hardware_profiles.cards.shape import Shape, distinct_shapes
from ...spaces.knobs.kind import KnobKind
from ...spaces.knobs.quantization import FLOATS
from ...spaces.knobs.recovery import RECOVERY_KIND
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.policies.float_precision import FloatPrecision
from ...spaces.policies.policy import Choice
from ...spaces.policies.quantization_scheme import Activations
from ...spaces.presets import PRESETS, Family, Preset, preset_space
from .constraint import Constraint
from .parts import AUTO, FOUND_ON_THE_MODEL, BudgetSpec, ComputeSpec, Part, QuantizationSpec, RecoverySpec, RungsSpec
from .space_spec import SpaceSpec, add_key

SCHEMA = 1
"""Version of the JSON a study is stored as."""

_FIXED = (
    "workload", "workload_options", "target", "shapes", "reference", "objectives", "constraints", "seed", "space", "recovery",
    "quantization",
)  # fmt: skip

T = TypeVar("T")


def _metric(name: str) -> str:
    if name not in METRICS.searchable:
        raise ValueError(f"{name!r} cannot be an objective; {suggestion(name, METRICS.searchable)}")
    return name


def _constraint(value: object) -> Constraint:
    return value if isinstance(value, Constraint) else Constraint.parse(value, METRICS.searchable)


Keep = Literal["front", "all", "none"]
"""Which trials keep their files: those on the front, all, or none once the front is confirmed."""

Objectives = Listed[Annotated[str, AfterValidator(_metric)]]
Constraints = Listed[Annotated[Constraint, PlainValidator(_constraint), PlainSerializer(str)]]


def _workers(value: object) -> object:
    if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT):
        return value
    raise ValueError(f"must be a whole number from 0 to {MAX_COUNT:.0e}, or {AUTO}, not {shortened(value, 40)}")


Workers = Annotated[int | Literal["auto"], BeforeValidator(_workers)]


class StudySpec(Part):
    """One study as its file describes it, frozen.

    Attributes:
        study: its name in the database.
        workload: "digits", "torchvision:resnet18", "file.py:function" or "package.module:function".
        workload_options: passed to the workload's loader.
        target: name of a shipped target card, or path of a card file.
        shapes: sizes of the workload's dynamic axes that latency is timed at, whose weighted mean counts; None leaves it to the card.
        reference: what speed-ups are counted from: "best", the fastest of the uncompressed model's free deployments that loses no
            accuracy beyond noise; "default", as the runtime computes it by itself; or "float32".
        objectives: 2 to 4 metrics.
        constraints: bounds a trial must keep to be on the front.
        workers: the most Ray workers; "auto" is as many as the cluster, or this machine, has room for. 0 runs the trials one after
            the other, without Ray.
        compute: what each worker computes on.
        transfer: the policy sampler also learns from other studies of the same workload in the database.
        rungs: stop recoveries that do not look promising; None lets every trial recover to its end.
        reuse_recovered: a policy that differs from a finished one in bits only takes its recovered weights over.
        artifacts: folder, from the study file's on, or URL that files of trials are kept in; None leaves it to the command.
        keep: which trials keep their files; those of the others can be made again from their policies.
        sensitivity: measure what single choices damage before the first trial, and start from the policies that suggests.
    """

    study: Name
    workload: Text
    workload_options: dict[str, JsonValue] = Field(default_factory=dict)
    target: Text
    shapes: Annotated[Listed[Shape], Field(min_length=1), AfterValidator(distinct_shapes)] | None = None
    reference: Literal["best", "default", "float32"] = "best"
    objectives: Objectives
    constraints: Constraints = ()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: Workers = 0
    compute: ComputeSpec = Field(default_factory=ComputeSpec)
    budget: BudgetSpec
    sampler: Literal["policy", "tpe", "nsgaii", "random"] = "policy"
    transfer: bool = True
    sensitivity: bool = True
    rungs: RungsSpec | None = None
    reuse_recovered: bool = False
    artifacts: Text | None = None
    keep: Keep = "front"
    space: SpaceSpec = Field(default_factory=lambda: SpaceSpec(preset="auto"))
    recovery: RecoverySpec = Field(default_factory=RecoverySpec)
    quantization: QuantizationSpec = Field(default_factory=QuantizationSpec)

    _base_folder: Path = PrivateAttr(default=Path())
    _file: str = PrivateAttr(default="")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that objectives and constraints name."""
        return (*self.objectives, *(constraint.metric for constraint in self.constraints))

    @model_validator(mode="after")
    def _plain_recovery(self) -> StudySpec:
        for key, wanted in (("rungs", self.rungs is not None), ("reuse_recovered", self.reuse_recovered)):
            if wanted and self.recovery.settings().steps != ("prune", "train"):
                raise ValueError(
                    f"{key} needs recovery.steps to be [prune, train]; training on grids depends on the bits"
                )
        return self

    @model_validator(mode="after")
    def _slimming_by_scale(self) -> StudySpec:
        if "slimming" in self.recovery.settings().steps and tuple(self.space.offered("criterion")) != ("bn_scale",):
            raise ValueError(
                "recovery.steps: slimming makes batch-norms' scales small, so space.criterion is [bn_scale]"
            )
        return self

    @field_validator("objectives")
    @classmethod
    def _two_to_four(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(objectives) <= 4:
            raise ValueError(f"a front needs 2 to 4 objectives, not {len(objectives)}")
        return objectives

    @property
    def base_folder(self) -> Path:
        """Folder of the study file, which a relative workload or target starts from; no part of what is searched."""
        return self._base_folder

    @property
    def file(self) -> str:
        """How errors call where this was read from."""
        return self._file

    @classmethod
    def from_document(cls, document: Mapping[Any, Any], file: object, base_folder: Path) -> StudySpec:
        """The spec that a study file's mapping describes; `file` is how errors call it.

        Raises:
            StudyFileError: the first problem, under its dotted key.
        """
        try:
            spec = cls.model_validate(document)
        except ValidationError as error:
            raise StudyFileError(file, *first_problem(cls, error)) from error
        spec._base_folder, spec._file = base_folder, str(file)
        return spec

    def replaced(
        self,
        *,
        trials: int | None = None,
        workers: int | str | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
    ) -> StudySpec:
        """This spec with what is given here, as from the command line, in place of the file's.

        Raises:
            StudyFileError: a value the file could not hold either.
        """
        document = self.model_dump(mode="json", exclude_unset=True)  # a preset fills in what is not set
        document["budget"].update(_given(trials=trials, timeout_s=timeout_s))
        document.update(_given(workers=workers, seed=seed))
        spec = self.from_document(document, "command line", self.base_folder)
        spec._file = self._file
        return spec

    def renamed(self, name: str) -> StudySpec:
        """This spec under another name.

        Raises:
            StudyFileError: a name that no study file may have.
        """
        spec = self.from_document({**self.model_dump(mode="json"), "study": name}, "new name", self.base_folder)
        spec._file = self._file
        return spec

    def with_preset(self, family: Family, bits: Mapping[str, Collection[Any]]) -> StudySpec:
        """This spec with everything its preset leaves to a family written out; itself where there is no preset.

        Args:
            family: the model's own, for "auto".
            bits: key of a space -> bit-widths and other choices that the target takes; a preset offers no others.
        """
        if self.space.preset == "none":
            return self
        chosen = family if self.space.preset == "auto" else self.space.preset
        space = {**preset_space(chosen, bits), **self.space.model_dump(exclude_unset=True), "preset": chosen}
        recovery = {**PRESETS[chosen].recovery, **self.recovery.model_dump(exclude_unset=True)}
        changes: dict[str, Any] = {"space": SpaceSpec(**space), "recovery": RecoverySpec(**recovery)}
        if "reuse_recovered" not in self.model_fields_set and "steps" not in recovery:
            changes["reuse_recovered"] = True  # or the same training under other bits takes half of a search's time
        return self._with(changes)

    def in_epochs(self, steps_of_an_epoch: int) -> StudySpec:
        """This spec with recoveries measured in epochs, where its file has them in steps of the optimizer."""
        return self._with({"space": self.space.in_epochs(steps_of_an_epoch)})

    def with_activations(self, kind: Activations) -> StudySpec:
        """This spec with activation grids of this kind, unless its file names another."""
        if "activations" in self.quantization.model_fields_set:
            return self
        return self._with({"quantization": self.quantization.model_copy(update={"activations": kind})})

    def with_float_precisions(self, offered: Sequence[FloatPrecision]) -> StudySpec:
        """This spec with the float precisions of its space, unless its file names them."""
        if FLOATS.key in self.space.model_fields_set:
            return self
        return self._with({"space": self.space.model_copy(update={FLOATS.key: tuple(offered)})})

    def continuing(self, begun: StudySpec) -> StudySpec:
        """This spec with what its file leaves open as the study has it that `begun` with it: presets may offer something else by
        now, and what its reference's timing settled stays."""
        preset = begun.space.preset if self.space.preset == "auto" else self.space.preset
        if preset != begun.space.preset:
            return self
        filled = next((found for family, found in PRESETS.items() if family == preset), Preset({}, {}))
        space = begun.space.model_dump(include={*filled.space, FLOATS.key})
        recovery = begun.recovery.model_dump(include={*filled.recovery})
        changes: dict[str, Any] = {
            "space": SpaceSpec(**{**space, **self.space.model_dump(exclude_unset=True), "preset": preset}),
            "recovery": RecoverySpec(**{**recovery, **self.recovery.model_dump(exclude_unset=True)}),
        }
        left = [key for key in FOUND_ON_THE_MODEL if getattr(changes["recovery"], key) == AUTO]
        found = {key: getattr(begun.recovery, key) for key in left}
        changes["recovery"] = changes["recovery"].model_copy(update=found)
        for key in {"reference", "keep"} - self.model_fields_set:
            changes[key] = getattr(begun, key)
        changes["quantization"] = self.with_activations(begun.quantization.scheme().activations).quantization
        return self._with(changes)

    def with_training(self, rate: float, way: Mapping[str, bool]) -> StudySpec:
        """This spec with the learning rate that was found for its model, and with what its trainings compute with; `way` has only
        settings that it leaves open, and bfloat16 is not taken where it is not in it."""
        settled = {"mixed_precision": False} if self.recovery.mixed_precision == AUTO else {}
        return self._with({"recovery": self.recovery.model_copy(update={"learning_rate": rate, **settled, **way})})

    def with_epochs(self, offered: Sequence[Choice]) -> StudySpec:
        """This spec with other epochs of recovery offered."""
        return self._with({"space": self.space.model_copy(update={RECOVERY_KIND: tuple(offered)})})

    def _with(self, changes: Mapping[str, Any]) -> StudySpec:
        full = self.model_copy(update=changes)
        full._base_folder, full._file = self._base_folder, self._file
        return full

    def to_json(self) -> str:
        """Versioned JSON for the database."""
        document = {
            "schema": SCHEMA,
            "file": self.file,
            "base_folder": str(self.base_folder),
            "study": self.model_dump(mode="json"),
        }
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> StudySpec:
        """The spec `to_json` wrote.

        Raises:
            StudyFileError: written by another version of slimfront, which knew other keys.
        """
        document = json.loads(text)
        if document["schema"] != SCHEMA:
            raise StudyFileError("database", "schema", f"must be {SCHEMA}, not {document['schema']!r}")
        study = {"reference": "float32", "keep": "all", **document["study"]}  # before there was a choice
        spec = cls.from_document(study, "database", Path(document["base_folder"]))
        spec._file = document["file"]
        return spec


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def incompatible_changes(old: StudySpec, new: StudySpec) -> list[str]:
    """Dotted keys that differ though one study's trials must share them.

    Workers, budget and sampler may change from one run to the next; what a trial means may not, nor the seed its weights
    are trained with.
    """
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    changes = []
    for key in _FIXED:
        if isinstance(getattr(new, key), Part):
            changed = [part for part in after[key] if after[key][part] != before[key][part]]
            changes += [f"{key}.{new.space.key_given(part) if key == 'space' else part}" for part in changed]
        elif after[key] != before[key]:
            changes.append(key)
    return changes


def _add_knob(kind: KnobKind) -> None:
    add_key(kind)
    StudySpec.model_rebuild(force=True)


KNOB_KINDS.each(_add_knob)
