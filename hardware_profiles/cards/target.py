"""A target: a machine's runtime, thread count and batch, read from a YAML card."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...core.documents import MAX_YAML_BYTES, read_file, yaml_document
from ...core.errors import DocumentError, TargetError
from ...core.validation import MAX_SENTENCE, Name, first_problem, shortened, suggestion
from ...spaces.policies.layer_policy import ACTIVATION_BITS, FULL_PRECISION, WEIGHT_BITS
from ..runtimes.registry import RUNTIMES, runtimes
from .device_card import DeviceCard
from .latency_table import LatencyTable
from .shape import Shape, distinct_shapes

CARDS = resources.files("slimfront.hardware_profiles.cards")


class Target(BaseModel):
    """Where candidates run.

    Attributes:
        name: how studies refer to it.
        runtime: a name of `runtimes.registry.runtimes()`.
        threads: inference threads; the bench is pinned to as many cores.
        streams: batches that run at the same time, sharing the threads: 1 is the latency mode, more the throughput mode.
        batch: samples per inference and stream; latency is that of all streams' batches.
        weight_bits, activation_bits: what policies may ask for here.
        options: settings of the runtime, such as `compile: true` of torch.
        shapes: sizes of dynamic axes, of whose latencies the weighted mean counts, unless a study names others; None for the size of
            the workload's example.
        note: for people.
        measured: what `slimfront profile` found; None in a template.
        latency_table: of one model, fitted where the target can be reached.
        predict: the target cannot be reached; latency is predicted by the table, and said to be.
        remote: the target is a node of the Ray cluster, one that advertises the resource `target:NAME`, and measures for
            everyone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    runtime: str
    threads: Annotated[int, Field(ge=1, le=4096)] = 1
    streams: Annotated[int, Field(ge=1, le=4096)] = 1
    batch: Annotated[int, Field(ge=1, le=10**6)] = 1
    weight_bits: Annotated[list[int], Field(min_length=1)]
    activation_bits: Annotated[list[int], Field(min_length=1)]
    options: dict[str, Any] = {}
    shapes: Annotated[list[Shape], Field(min_length=1), AfterValidator(distinct_shapes)] | None = None
    note: str = ""
    measured: DeviceCard | None = None
    latency_table: LatencyTable | None = None
    predict: bool = False
    remote: bool = False

    @model_validator(mode="after")
    def _check_table(self) -> Target:
        if self.predict and self.latency_table is None:
            raise ValueError("predict: needs a latency_table; `slimfront profile TARGET --table STUDY` fits one")
        if self.predict and self.shapes:
            raise ValueError("shapes: a latency table predicts one shape, that of the workload's example")
        if self.predict and self.remote:
            raise ValueError("remote: a target that a node measures on is not predicted; leave one of the two out")
        return self

    @field_validator("runtime")
    @classmethod
    def _check_runtime(cls, name: str) -> str:
        if name not in RUNTIMES:
            raise ValueError(f"unknown runtime {name!r}; known are {', '.join(runtimes())}")
        return name

    @model_validator(mode="after")
    def _check_options(self) -> Target:
        known = RUNTIMES[self.runtime].options
        for key, value in self.options.items():
            if key not in known:
                raise ValueError(f"options.{key}: {self.runtime} has {', '.join(sorted(known)) or 'no options'}")
            allowed = known[key]
            if type(value) is not type(allowed[0]) or value not in allowed:
                raise ValueError(f"options.{key}: {value!r} is not one of {allowed[0]} to {allowed[-1]}")
        return self

    @model_validator(mode="after")
    def _check_streams(self) -> Target:
        if self.threads % self.streams:
            raise ValueError(f"streams: {self.streams} do not share {self.threads} threads evenly")
        if self.streams > 1 and RUNTIMES[self.runtime].gpu:
            raise ValueError(f"streams: {self.runtime} is timed with one batch on the GPU at once; leave it at 1")
        return self

    @model_validator(mode="after")
    def _check_bits(self) -> Target:
        for key, known in (("weight_bits", WEIGHT_BITS), ("activation_bits", ACTIVATION_BITS)):
            offered, possible = getattr(self, key), getattr(RUNTIMES[self.runtime], key)
            for bits in offered:
                if bits not in known:
                    raise ValueError(f"{key}: {bits} is not one of {', '.join(map(str, known))}")
                if bits not in possible:
                    raise ValueError(f"{key}: {self.runtime} has no {bits} bits, only {', '.join(map(str, possible))}")
            if FULL_PRECISION not in offered:
                raise ValueError(f"{key}: {FULL_PRECISION} must be offered, the uncompressed model runs at it")
        return self


def shipped_targets() -> list[str]:
    """Names of the cards that come with slimfront."""
    return sorted(Path(card.name).stem for card in CARDS.iterdir() if card.name.endswith(".yaml"))


def load_target(reference: str, base: Path | None = None) -> Target:
    """The target of a shipped card's name, or of a YAML file (relative to `base`).

    Raises:
        TargetError: no such card, or one that is wrong; the message names file and key.
    """
    if reference in shipped_targets():
        with resources.as_file(CARDS / f"{reference}.yaml") as card:
            return _parsed(card, f"{reference}.yaml")
    path = (base or Path()) / reference
    if not os.path.isfile(path):  # False, where Path.is_file raises over a name that is too long
        raise TargetError(
            f"target {shortened(repr(reference), MAX_SENTENCE)} is neither a shipped card nor a file; "
            f"{suggestion(reference, shipped_targets())}"
        )
    return _parsed(path, str(path))


def card_text(target: Target) -> str:
    """The target as a card file that `load_target` reads."""
    document = target.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)


def _parsed(path: Path, file: str) -> Target:
    """The target of a card; `file` is how errors call it."""
    try:
        return Target.model_validate(yaml_document(read_file(path, MAX_YAML_BYTES)))
    except DocumentError as error:
        raise TargetError(f"{file}:{error.line}: {error}" if error.line else f"{file}: {error}") from error
    except ValidationError as error:
        where, problem = first_problem(Target, error)
        raise TargetError(f"{file}: {where}: {problem}" if where else f"{file}: {problem}") from error
