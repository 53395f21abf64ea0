"""A bundle: one trial of a study as a folder that needs no slimfront."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ...core.errors import UserError
from ...hardware_profiles.cards.target import load_target
from ...hardware_profiles.runtimes.base import get_runtime
from ..analysis.newest_front import front_points, objectives_of, why_no_front
from ..analysis.selection import pick
from ..store.executed import executed_precisions
from ..store.records import ArtifactRecord, StudyRecord, TrialRecord
from ..store.store import Store
from ..store.trial_state import TrialState
from .card import card_document, card_page
from .run_script import run_script

BUNDLED = ("model", "weights")
"""Kinds of a trial's artifacts that are bundled, under their own names."""

PACKED = "packed"
"""Bundled too where the trial has it; older ones have not."""

REFERENCE = Path("..", "reference")
"""Where the uncompressed model's artifact lies, from the folder of a trial, called as the trial's."""


def export_bundle(store: Store, name: str, to: Path, trial: int | None, rule: str) -> int:
    """Write a trial's bundle: the very artifact that was measured, its policy, weights, reference, card and run.py.

    The folder appears as a whole or not at all.

    Args:
        to: folder to write; new or empty, parents are made.
        trial: its number; None leaves the choice to `rule`, one of `picks.RULES`, over the front.

    Returns:
        the trial's number.

    Raises:
        UserError: no such study, trial, front or rule; a trial without an artifact; a file that is gone or is not the one
            that was measured; or `to` cannot be written.
    """
    folder = _free_folder(to)
    study = store.get_study(name)
    record = store.get_trial(name, _picked(store, study, rule) if trial is None else trial)
    _write(
        folder, to, _contents(study, record, _artifacts(store, record), executed_precisions(store, name, record.number))
    )
    return record.number


def _free_folder(to: Path) -> Path:
    folder = to.resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{to} is a file; name a new folder to export to")
    if folder == Path.cwd():
        raise UserError(f"{to} is the folder you are in; name a new one to export to")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{to} is not empty; name a new folder to export to")
    return folder


def _picked(store: Store, study: StudyRecord, rule: str) -> int:
    points = front_points(store, study)
    if not points:
        raise UserError(f"{study.name} has no front yet: {why_no_front(store.trial_summaries(study.name))}")
    return pick(points, objectives_of(study), rule).trial


_BROKEN = {TrialState.FAILED: "failed", TrialState.INTERRUPTED: "was interrupted"}


def _artifacts(store: Store, trial: TrialRecord) -> dict[str, ArtifactRecord]:
    """The trial's newest file of each kind in `BUNDLED`, and the packed one if there is one."""
    if trial.state == "running":
        raise UserError(f"trial {trial.number} is still running; there is nothing to export yet")
    if not trial.state.has_result:
        raise UserError(f"trial {trial.number} {_BROKEN[trial.state]} and cannot be exported: {trial.reason}")
    found = {artifact.kind: artifact for artifact in store.artifacts(trial.study, trial.number)}
    missing = [kind for kind in BUNDLED if kind not in found]
    if missing:
        raise UserError(f"trial {trial.number} kept no {missing[0]} to export; it ended {trial.account}")
    return {kind: found[kind] for kind in (*BUNDLED, PACKED) if kind in found}


def _contents(
    study: StudyRecord, trial: TrialRecord, artifacts: Mapping[str, ArtifactRecord], executed: Mapping[str, str]
) -> dict[str, bytes]:
    """Every file of the bundle by name, all read and checked before anything is written."""
    contents = {"policy.json": f"{trial.policy_json}\n".encode()}
    contents |= {
        f"{kind}{Path(record.path).suffix}": _as_recorded(trial.number, record) for kind, record in artifacts.items()
    }
    model = Path(artifacts["model"].path)
    contents[f"reference{model.suffix}"] = _reference(study, model.parent / REFERENCE / model.name)
    target = load_target(study.spec.target, study.spec.base_folder)
    if (script := run_script(target.runtime)) is not None:
        contents["run.py"] = script.encode()
    card = card_document(
        study,
        trial,
        target,
        get_runtime(target.runtime).signature(model),
        executed,
        artifacts["model"].made_at,
        {name: {"sha256": _sha256(content), "bytes": len(content)} for name, content in contents.items()},
    )
    contents["card.json"] = f"{json.dumps(card, indent=2, ensure_ascii=False)}\n".encode()
    contents["card.md"] = card_page(card, trial.policy).encode()
    return contents


def _as_recorded(number: int, record: ArtifactRecord) -> bytes:
    """The content of a file that still is what was measured."""
    content = _read(f"trial {number}'s {record.kind}", Path(record.path))
    if _sha256(content) != record.sha256:
        raise UserError(
            f"trial {number}'s {record.kind} {record.path} is not the file that was measured: its sha256 changed"
        )
    return content


def _reference(study: StudyRecord, path: Path) -> bytes:
    content = _read("the uncompressed model's artifact", path.resolve())
    recorded = study.baseline["artifact_bytes"].value
    if len(content) != recorded:
        raise UserError(
            f"{path.resolve()} is not the uncompressed model that was measured: {len(content)} bytes, not {recorded:.0f}"
        )
    return content


def _read(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} cannot be read: {path}: {(error.strerror or str(error)).lower()}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(folder: Path, to: Path, contents: Mapping[str, bytes]) -> None:
    """Write everything next to `folder`, then rename it into place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            bundle = Path(temporary) / folder.name
            bundle.mkdir()  # with the user's own permissions, which the temporary folder around it does not have
            for name, content in contents.items():
                (bundle / name).write_bytes(content)
            bundle.replace(folder)
    except OSError as error:
        raise UserError(f"{to} cannot be written: {(error.strerror or str(error)).lower()}") from error
