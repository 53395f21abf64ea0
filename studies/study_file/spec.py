"""The study file: what is searched, on which target, for which objectives, within which budget.

Read from YAML into a frozen `StudySpec`; every problem is one line naming the file and the key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from ...core.documents import MAX_YAML_BYTES, read_file, yaml_document
from ...core.errors import DocumentError, PolicyError, StudyFileError
from ...core.measurement import METRICS
from ...core.validation import Name, first_problem, shortened, suggestion
from ...spaces.policies.layer_policy import (
    ACTIVATION_BITS,
    BFLOAT16_BITS,
    CODEBOOKS,
    RANGES,
    STATIC,
    UNIFORM,
    WEIGHT_BITS,
)
from ...spaces.policies.operators import Operator
from ...spaces.policies.policy import Recovery
from ...spaces.policies.pruning import REDUCTIONS, SCOPES
from ...spaces.policies.recovery import RecoveryStep
from ...spaces.policies.sparsity import Sparsity, threshold_of
from ...spaces.presets import PRESETS, Family, preset_space
from .constraint import Constraint

SCHEMA = 1
"""Version of the JSON a study is stored as."""

JUDGED = frozenset(name for name in METRICS if not name.startswith(("simulated_", "test_")))
"""Metrics an objective or a constraint may name: of the artifact, not a simulation, and never on the test split."""

_FIXED = (
    "workload", "workload_options", "target", "objectives", "constraints", "seed", "space", "recovery", "quantization",
)  # fmt: skip
_LIBRARY = resources.files("slimfront.studies").joinpath("library")

T = TypeVar("T")


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value} is there twice")
        seen.add(value)
    return values


def _one_of(allowed: tuple[T, ...]) -> AfterValidator:
    def check(value: T) -> T:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, allowed))}")
        return value

    return AfterValidator(check)


def _sparsity(value: object) -> Sparsity:
    if isinstance(value, str) and (value == "2:4" or threshold_of(value) is not None):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise ValueError(f'{value!r} is not a number in [0, 1) or, in quotes, "2:4" or a threshold such as "<0.5std"')


def _operator(value: object) -> str:
    Operator.parse(value)
    return str(value)


def _metric(name: str) -> str:
    if name not in JUDGED:
        raise ValueError(f"{name!r} cannot be an objective; {suggestion(name, JUDGED)}")
    return name


def _constraint(value: object) -> Constraint:
    return value if isinstance(value, Constraint) else Constraint.parse(value, JUDGED)


MAX_NAME = 300
"""Characters of a file's name that errors show."""

MAX_COUNT = 10**9
"""The most of anything that is counted, such as trials."""

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrNone = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Listed = Annotated[tuple[T, ...], Field(max_length=1000), BeforeValidator(_as_tuple), AfterValidator(_distinct)]
Choices = Annotated[Listed[T], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
WeightBits = Annotated[int, _one_of(WEIGHT_BITS)]
ActivationBits = Annotated[int, _one_of(ACTIVATION_BITS)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
WeightSparsity = Annotated[Sparsity, PlainValidator(_sparsity)]
Width = Annotated[float, Field(gt=0, le=1)]
Objectives = Listed[Annotated[str, AfterValidator(_metric)]]
Constraints = Listed[Annotated[Constraint, PlainValidator(_constraint), PlainSerializer(str)]]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SpaceSpec(_Part):
    """The choices of each knob; a knob not named is off, which is its only choice, or as the preset has it.

    Attributes:
        preset: a family of `spaces.presets` whose choices hold where none are given, "auto" for the model's own, or "none".
        granularity: how many layers share one knob for weight bits, activation bits and weight sparsity.
        channel_sparsity: per channel group, fraction of the channels removed.
        weight_sparsity: fraction of a layer's weights set to zero, or "2:4".
        width: student width, fraction of every channel group kept.
        recovery_epochs: passes over the training data after compression.
        criterion: what channels, heads and weights are ranked by.
        sparsity_scope: whether fractions of weights are taken layer by layer or wherever weights are worth least.
        pruning_steps: more than one prunes gradually during recovery.
        channel_reduction: whether removed channels are dropped or merged into the most similar ones kept.
        removed_blocks: per block that may go whole, 1 to remove it.
        operators: what may stand in place of a dense layer.
        codebooks: what values weights of 8 bits and fewer may take.
        activation_ranges: whether ranges of 8-bit activations of linear layers are calibrated or computed at run time.
        depth: fraction kept of the blocks that may go whole; those that change their input least go first.
        keep: `fnmatch` patterns of layers left at full precision and density, their channels never removed.
    """

    preset: Literal["none", "auto", "cnn", "transformer", "recurrent"] = "none"
    granularity: Literal["layer", "block", "type", "model"] = "layer"
    weight_bits: Choices[WeightBits] = (32,)
    activation_bits: Choices[ActivationBits] = (32,)
    channel_sparsity: Choices[Fraction] = (0.0,)
    weight_sparsity: Choices[WeightSparsity] = (0.0,)
    width: Choices[Width] = (1.0,)
    recovery_epochs: Choices[CountOrNone] = (0,)
    criterion: Choices[Text] = ("l2",)
    sparsity_scope: Choices[Annotated[str, _one_of(SCOPES)]] = ("layer",)
    pruning_steps: Choices[Count] = (1,)
    channel_reduction: Choices[Annotated[str, _one_of(REDUCTIONS)]] = ("drop",)
    removed_blocks: Choices[Annotated[int, _one_of((0, 1))]] = (0,)
    operators: Choices[Annotated[str, PlainValidator(_operator)]] = ("dense",)
    codebooks: Choices[Annotated[str, _one_of(CODEBOOKS)]] = (UNIFORM,)
    activation_ranges: Choices[Annotated[str, _one_of(RANGES)]] = (STATIC,)
    depth: Choices[Width] = (1.0,)
    keep: Listed[Text] = ()

    @model_validator(mode="after")
    def _whole_bfloat16(self) -> SpaceSpec:
        given = self.preset == "none" or "weight_bits" in self.model_fields_set
        if BFLOAT16_BITS in self.activation_bits and given and BFLOAT16_BITS not in self.weight_bits:
            raise ValueError(
                f"activation_bits: {BFLOAT16_BITS} is bfloat16, of layers whose weights are too; add it to weight_bits"
            )
        return self

    @model_validator(mode="after")
    def _not_empty(self) -> SpaceSpec:
        knobs = [name for name in type(self).model_fields if name not in ("preset", "granularity", "keep")]
        if self.preset == "none" and all(len(getattr(self, name)) == 1 for name in knobs):
            raise ValueError(f"empty space: give at least one of {', '.join(knobs)} more than one choice")
        return self


class BudgetSpec(_Part):
    """When the search ends: after so many trials or seconds, or once it has converged, whichever comes first.

    Attributes:
        trial_timeout_s: seconds after which a trial is ended, and is a failed one; None lets each take as long as it likes.
        patience: trials that may pass while the front's hypervolume grows by less than `convergence.LEAST_GROWTH`.
    """

    trials: Count | None = None
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    trial_timeout_s: Annotated[float, Field(gt=0)] | None = None
    patience: Count | None = None

    @model_validator(mode="after")
    def _some(self) -> BudgetSpec:
        if self.trials is None and self.timeout_s is None:
            raise ValueError("give trials, timeout_s or both")
        return self


class RecoverySpec(_Part):
    """Training around pruning and quantization, as in `spaces.policy.Recovery`; its epochs are a knob of the space."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7
    batch_size: Count = 64
    steps: Annotated[tuple[RecoveryStep, ...], BeforeValidator(_as_tuple)] = ("prune", "train")
    distiller: Text = "soft"
    teachers: Listed[Text] = ()
    data: Literal["train", "unlabelled", "synthetic"] = "train"
    mutual: bool = False
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    patience: CountOrNone = 0
    mixed_precision: bool = False

    @model_validator(mode="after")
    def _pipeline(self) -> RecoverySpec:
        try:
            Recovery(1, **self.model_dump(exclude={"batch_size"}))
        except PolicyError as error:
            raise ValueError(str(error)) from error
        return self


class QuantizationSpec(_Part):
    """How the grids of quantized layers are chosen, as in `spaces.scheme.Scheme`; their bits are knobs of the space."""

    calibration: Literal["mse", "min_max", "percentile", "entropy"] = "mse"
    weights: Literal["channel", "tensor"] = "channel"
    activations: Literal["affine", "symmetric"] = "affine"


class RungsSpec(_Part):
    """Where a trial's recovery is looked at, and stopped unless it is among the best one in `reduction` that came so far.

    Attributes:
        recovery: rising fractions of the recovery's epochs; 0 looks at the model before any, and the last is 1. One that is
            less than an epoch looks at it after that part of the training data.
    """

    recovery: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_as_tuple)] = (0.0, 0.25, 1.0)
    reduction: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 3

    @model_validator(mode="after")
    def _rising(self) -> RungsSpec:
        if not self.recovery or list(self.recovery) != sorted(set(self.recovery)) or self.recovery[-1] != 1:
            raise ValueError("fractions of the recovery rise and end with 1, as in [0, 0.25, 1]")
        return self

    def marks(self, epochs: int) -> tuple[float, ...]:
        """Epochs, or a part of the first, after which a recovery of so many is looked at, the whole one left out."""
        wanted = (fraction * epochs for fraction in self.recovery)
        found = (mark if mark < 1 else round(mark) for mark in wanted)
        return tuple(sorted({mark for mark in found if 0 < mark < epochs}))


class StudySpec(_Part):
    """One study as its file describes it, frozen.

    Attributes:
        study: its name in the database.
        workload: "digits", "torchvision:resnet18", "file.py:function" or "package.module:function".
        workload_options: passed to the workload's loader.
        target: name of a shipped target card, or path of a card file.
        objectives: 2 to 4 metrics.
        constraints: bounds a trial must keep to be on the front.
        workers: 0 runs the trials one after the other, without Ray.
        transfer: the policy sampler also learns from other studies of the same workload in the database.
        rungs: stop recoveries that do not look promising; None lets every trial recover to its end.
        reuse_recovered: a policy that differs from a finished one in bits only takes its recovered weights over.
        sensitivity: measure what single choices damage before the first trial, and start from the policies that suggests.
    """

    study: Name
    workload: Text
    workload_options: dict[str, JsonValue] = Field(default_factory=dict)
    target: Text
    objectives: Objectives
    constraints: Constraints = ()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: CountOrNone = 0
    budget: BudgetSpec
    sampler: Literal["policy", "tpe", "nsgaii", "random"] = "policy"
    transfer: bool = True
    sensitivity: bool = True
    rungs: RungsSpec | None = None
    reuse_recovered: bool = False
    space: SpaceSpec = SpaceSpec(preset="auto")
    recovery: RecoverySpec = RecoverySpec()
    quantization: QuantizationSpec = QuantizationSpec()

    _base_folder: Path = PrivateAttr(default=Path())
    _file: str = PrivateAttr(default="")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that objectives and constraints name."""
        return (*self.objectives, *(constraint.metric for constraint in self.constraints))

    @model_validator(mode="after")
    def _plain_recovery(self) -> StudySpec:
        for key, wanted in (("rungs", self.rungs is not None), ("reuse_recovered", self.reuse_recovered)):
            if wanted and self.recovery.steps != ("prune", "train"):
                raise ValueError(
                    f"{key} needs recovery.steps to be [prune, train]; training on grids depends on the bits"
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
        workers: int | None = None,
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

    def with_preset(self, family: Family, bits: Mapping[str, Collection[int]]) -> StudySpec:
        """This spec with everything its preset leaves to a family written out; itself where there is no preset.

        Args:
            family: the model's own, for "auto".
            bits: key of a space -> bit-widths that the target takes; a preset offers no others.
        """
        if self.space.preset == "none":
            return self
        chosen = family if self.space.preset == "auto" else self.space.preset
        space = {**preset_space(chosen, bits), **self.space.model_dump(exclude_unset=True), "preset": chosen}
        recovery = {**PRESETS[chosen].recovery, **self.recovery.model_dump(exclude_unset=True)}
        full = self.model_copy(update={"space": SpaceSpec(**space), "recovery": RecoverySpec(**recovery)})
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
        spec = cls.from_document(document["study"], "database", Path(document["base_folder"]))
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
        if isinstance(getattr(new, key), _Part):
            changes += [f"{key}.{part}" for part in after[key] if after[key][part] != before[key][part]]
        elif after[key] != before[key]:
            changes.append(key)
    return changes


def shipped_studies() -> list[str]:
    """Names of the study files that come with slimfront."""
    files = (file.name for file in _LIBRARY.iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_study(reference: str) -> StudySpec:
    """The study of a file, or of a shipped one by its name.

    Args:
        reference: path of a study file, or one of `shipped_studies()`.

    Raises:
        StudyFileError: no such file, or the first thing wrong with it.
    """
    path = Path(reference)
    if reference in shipped_studies() and not path.is_file():
        with resources.as_file(_LIBRARY.joinpath(f"{reference}.yaml")) as shipped:
            return StudySpec.from_document(_read_mapping(shipped, reference), reference, Path.cwd())
    name = shortened(reference, MAX_NAME)
    if not os.path.exists(reference):
        raise StudyFileError(
            name, "", f"no such file, and no shipped study; {suggestion(reference, shipped_studies())}"
        )
    return StudySpec.from_document(_read_mapping(path, name), reference, path.resolve().parent)


def study_named(reference: str) -> StudySpec | None:
    """The study of a file or a shipped one; None where `reference` is neither's name and so may be a workload's.

    Raises:
        StudyFileError: as `load_study`.
    """
    is_study = reference in shipped_studies() or Path(reference).suffix in (".yaml", ".yml")
    return load_study(reference) if is_study else None


def _read_mapping(path: Path, name: str) -> dict[Any, Any]:
    """The one mapping a YAML file holds; `name` is how errors call the file."""
    try:
        document = yaml_document(read_file(path, MAX_YAML_BYTES))
    except DocumentError as error:
        raise StudyFileError(f"{name}:{error.line}" if error.line else name, "", str(error)) from error
    if not isinstance(document, dict):
        held = "is empty" if document is None else f"holds a {type(document).__name__}"
        raise StudyFileError(name, "", f"{held}; a study file is a mapping of keys such as study, workload, target")
    return document
