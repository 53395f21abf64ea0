"""A bundle opened as data from somebody else: nothing it names is run, and no file outside its folder is read."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...core.batch import INPUT
from ...core.documents import MAX_JSON_BYTES, json_document, read_file, require_regular
from ...core.errors import DocumentError, UserError
from ...core.validation import MAX_SENTENCE, first_problem, shortened
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.runtimes.base import Artifact
from .card import SCHEMA

CARD = "card.json"
MAX_INPUT_BYTES = 2**31
"""Of one batch of a model's inputs."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class ListedFile(_Part):
    """What a card says of one file."""

    sha256: Annotated[str, Field(min_length=64, max_length=64)]
    bytes: Annotated[int, Field(ge=0)]


class Figure(_Part):
    """A measurement, of which only the value is held against what is found."""

    value: float


class SpeedUp(_Part):
    """A ratio, and its 95 % interval: what is found within that is what the card claims."""

    value: Annotated[float, Field(gt=0)]
    low: float
    high: float


class Measured(_Part):
    """The measurements that are checked."""

    accuracy: Figure
    artifact_bytes: Figure
    speedup: SpeedUp
    packed_bytes: Figure | None = None


class QualityPart(_Part):
    """What the accuracy is; of cards of before there was another, a fraction."""

    unit: Annotated[str, Field(max_length=32)] = "fraction"
    margin: Annotated[float, Field(gt=0)] = 0.1


class InputInfo(_Part):
    """One of the model's inputs, batch included; `axes` has the names of those whose size may differ from `shape`."""

    name: Annotated[str, Field(max_length=200)] = INPUT
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=16)]
    dtype: Literal["float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"] = "float32"
    axes: Annotated[dict[str, str], Field(max_length=16)] = {}

    @model_validator(mode="after")
    def _has_axes(self) -> InputInfo:
        for axis in self.axes:
            if axis not in map(str, range(1, len(self.shape))):
                raise ValueError(
                    f"axes names axis {shortened(axis)}, which a shape of {len(self.shape)} sizes does not have"
                )
        return self

    def resized(self, sizes: Mapping[str, int]) -> list[int]:
        """The shape with these sizes of the axes that are named."""
        return [sizes.get(self.axes.get(str(axis), ""), size) for axis, size in enumerate(self.shape)]

    def bytes_of(self, batch: int, sizes: Mapping[str, int]) -> int:
        """The bytes of a batch of so many samples, or of the shape's own where that has more, with these sizes of named axes."""
        samples, *others = self.resized(sizes)
        return np.dtype(self.dtype).itemsize * max(samples, batch) * math.prod(others)


class Provenance(_Part):
    """Where the bundle comes from, by its own account."""

    workload_fingerprint: str | None = None


class Card(_Part):
    """What verifying reads of a card.json; `card` describes the whole of it."""

    schema_: Annotated[int, Field(alias="schema")]
    trial: Annotated[int, Field(ge=0)]
    measurements: Measured
    metric: QualityPart = QualityPart()
    target: Target
    input: InputInfo
    inputs: Annotated[list[InputInfo], Field(max_length=100)] = []
    provenance: Provenance
    files: Annotated[dict[str, ListedFile], Field(max_length=100)]

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, ListedFile]) -> dict[str, ListedFile]:
        for name in files:
            if not _PLAIN.fullmatch(name):
                raise ValueError(f"{shortened(repr(name))} is not a plain name of a file in the bundle")
        return files

    @model_validator(mode="after")
    def _fits_memory(self) -> Card:
        """At every shape that is timed."""
        for shape in (None, *(self.target.shapes or ())):
            sizes = {} if shape is None else shape.sizes
            if sum(each.bytes_of(self.target.batch, sizes) for each in self.takes) > MAX_INPUT_BYTES:
                at = "" if shape is None else f" at {shape.name}"
                raise ValueError(f"inputs: one batch{at} would take more than {MAX_INPUT_BYTES:,} bytes")
        return self

    @property
    def takes(self) -> list[InputInfo]:
        """The model's inputs; cards of earlier versions have one."""
        return self.inputs or [self.input]


@dataclass(frozen=True)
class Bundle:
    """A folder with a card that makes sense, and files that are there, each in the folder itself."""

    folder: Path
    card: Card

    def artifact(self, stem: str) -> Artifact:
        """The model or the reference, whatever format its runtime loads.

        Raises:
            UserError: the card lists none.
        """
        found = next((name for name in self.card.files if Path(name).stem == stem), None)
        if found is None or not (self.folder / found).exists():
            raise UserError(f"{self.folder} has no {stem} file; export the bundle again")
        return Artifact.of(self.folder / found)

    def listed(self, artifact: Artifact) -> str:
        """The sha256 that the card gives a file."""
        return self.card.files[artifact.path.name].sha256

    def changed(self) -> list[str]:
        """Names of the listed files that are missing or not what the card says."""
        return [name for name, about in self.card.files.items() if not self._is_as_listed(name, about)]

    def _is_as_listed(self, name: str, about: ListedFile) -> bool:
        path = self.folder / name
        if not path.exists() or path.stat().st_size != about.bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == about.sha256


def open_bundle(folder: Path) -> Bundle:
    """The bundle in `folder`, its card read and its files found to be regular ones; their content is not looked at yet.

    Raises:
        UserError: no bundle, one of a later schema, a card that is malformed, or a file that is a link, a pipe or elsewhere.
    """
    path = Path(os.path.abspath(folder)) / CARD
    if not os.path.lexists(path):
        raise UserError(
            f"{shortened(folder, MAX_SENTENCE)} is not a bundle: it has no {CARD}; `slimfront export` makes one"
        )
    try:
        bundle = Bundle(path.parent, _card(json_document(read_file(path, MAX_JSON_BYTES, regular=True))))
    except DocumentError as error:
        raise UserError(f"{folder / CARD}: {error}") from error
    for name in bundle.card.files:
        _refuse_elsewhere(bundle.folder / name, folder / name)
    return bundle


def _card(document: object) -> Card:
    schema = document.get("schema") if isinstance(document, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise DocumentError(
            f"has schema {shortened(schema)}, this slimfront knows {SCHEMA}; a newer slimfront reads it"
        )
    try:
        return Card.model_validate(document)
    except ValidationError as error:
        key, problem = first_problem(Card, error)
        raise DocumentError(f"{key}: {problem}" if key else problem) from error


def _refuse_elsewhere(path: Path, shown: Path) -> None:
    try:
        require_regular(path)
    except FileNotFoundError:
        return  # reported by `changed`, as one that was taken out
    except (DocumentError, OSError) as error:
        raise UserError(f"{shown}: {getattr(error, 'strerror', None) or error}") from error
