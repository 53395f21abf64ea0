"""An exported bundle held against its card, on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..compression.packed_file import digest, load_packed, packed_bytes, recorded_digest
from ..errors import TargetError, UserError
from ..evaluators.accuracy import score
from ..evaluators.evaluator import Context
from ..hardware_profiles.bench import bench_cores
from ..hardware_profiles.runtime import Artifact, get_runtime
from ..hardware_profiles.target import Target
from ..hardware_profiles.timer import Timer
from ..workloads.load import load_workload
from .card import SCHEMA

ACCURACY_TOLERANCE = 0.005
SPEEDUP_TOLERANCE = 0.1
SECONDS = 2.0

OpenTimer = Callable[[Target, Path, Tensor, Sequence[int]], Timer]
"""(target, reference, example input, cores of a bench on this machine) -> what times artifacts of that target."""


@dataclass(frozen=True)
class Check:
    """One claim of a card: what it says, what was found here, what difference is allowed, and whether it holds; None
    where it cannot be told here."""

    claim: str
    recorded: str
    found: str
    allowed: str
    holds: bool | None


def verify_bundle(folder: Path, base: Path, open_timer: OpenTimer) -> Iterator[Check]:
    """Check what the card claims, one by one: the files, their sizes, the accuracy and the paired speed-up.

    Args:
        folder: as `export_bundle` wrote it.
        base: folder that a workload given as `file.py:function` is looked for in.
        open_timer: `search.timer_of_target.timer_of`; a remote target is timed where it is.

    Raises:
        UserError: no bundle, or one of a later schema; its workload or runtime cannot be had.
    """
    card = _card(folder)
    target = Target.model_validate(card["target"])
    yield _files(folder, card)
    model, reference = (Artifact.of(_named(folder, card, name)) for name in ("model", "reference"))
    measured = card["measurements"]
    bytes_ = measured["artifact_bytes"]["value"]
    yield Check("artifact_bytes", f"{bytes_:.0f}", str(model.bytes), "none", model.bytes == bytes_)
    if (packed := folder / "packed.safetensors").name in card["files"]:
        yield from _packed(packed, measured["packed_bytes"]["value"])
    provenance = card["provenance"]
    workload = load_workload(provenance["workload"], provenance["workload_options"], base)
    context = Context(workload, target, get_runtime(target.runtime))
    accuracy, value = measured["accuracy"]["value"], score(model, workload.validation, context).value()
    close = abs(value - accuracy) <= ACCURACY_TOLERANCE
    yield Check("accuracy", f"{accuracy:.4f}", f"{value:.4f}", f"{ACCURACY_TOLERANCE}", close)
    yield _speedup(measured["speedup"]["value"], model, reference, workload.example_input, target, open_timer)


def _speedup(
    recorded: float, model: Artifact, reference: Artifact, example_input: Tensor, target: Target, open_timer: OpenTimer
) -> Check:
    """The paired speed-up measured again where the target is; not checked where nobody can get there."""
    claim, told = "speedup", f"{recorded:.3f}"
    if target.predict:
        return Check(claim, told, "not measured: predicted for a machine elsewhere", "", None)
    try:
        with open_timer(target, reference.path, example_input, bench_cores(target.threads)) as timer:
            found = timer.time(model.path, SECONDS).speedup
    except TargetError as error:  # no node of a cluster is it
        return Check(claim, told, f"not measured: {error}", "", None)
    close = abs(found / recorded - 1) <= SPEEDUP_TOLERANCE
    return Check(claim, told, f"{found:.3f}", f"{SPEEDUP_TOLERANCE:.0%}", close)


def _packed(path: Path, recorded: float) -> Iterator[Check]:
    """Whether the packed file takes what was measured, and comes back as the weights that were packed."""
    found = packed_bytes(path)
    yield Check("packed_bytes", f"{recorded:.0f}", str(found), "none", found == recorded)
    before, after = recorded_digest(path), digest(load_packed(path))
    yield Check("packed weights, by digest", before, after, "none", before == after)


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    try:
        card = json.loads(path.read_text())
        schema = card["schema"]
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no bundle: it has no card.json; `slimfront export` makes one") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a card: {type(error).__name__}: {error}") from error
    if schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}, this slimfront knows {SCHEMA}; a newer slimfront reads it")
    return card


def _files(folder: Path, card: Mapping[str, Any]) -> Check:
    changed = [name for name, about in card["files"].items() if _sha256(folder / name) != about["sha256"]]
    found = f"{', '.join(changed)} changed" if changed else "unchanged"
    return Check("files, by sha256", f"{len(card['files'])} files", found, "none", not changed)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _named(folder: Path, card: Mapping[str, Any], stem: str) -> Path:
    """The file of that stem among the card's, whatever format its runtime loads."""
    found = next((folder / name for name in card["files"] if Path(name).stem == stem), None)
    if found is None or not found.is_file():
        raise UserError(f"{folder} has no {stem} file; export the bundle again")
    return found
