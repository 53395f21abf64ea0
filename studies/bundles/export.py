"""A bundle: one trial of a study as a folder that needs no slimfront."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...core.errors import ArtifactGoneError, UserError
from ...hardware_profiles.runtimes.base import get_runtime
from ..analysis.newest_front import front_points, objectives_of, why_no_front
from ..analysis.selection import pick
from ..files.executed import executed_precisions
from ..files.remade import Remade, file_digest
from ..files.study_files import MODEL, PACKED, WEIGHTS, StudyFiles
from ..store.records import ArtifactRecord, StudyRecord, TrialRecord
from ..store.store import Store
from ..store.trial_state import TrialState
from ..study_file.target import target_named
from .card import card_document, card_page
from .run_script import run_script

BUNDLED = (MODEL, WEIGHTS)
"""Kinds of a trial's artifacts that are bundled, under their own names; `PACKED` too where the trial has it, as older ones have not."""


class Remaker(Protocol):
    """Makes files again that were not kept."""

    def trial(self, trial: TrialRecord, folder: Path) -> Mapping[str, Path]:
        """The files of a trial by kind, compressed from its policy again into `folder`."""
        ...

    def reference(self, folder: Path) -> Path:
        """The reference's artifact, written into `folder`."""
        ...


@dataclass(frozen=True)
class ExportedTrial:
    """Which trial was exported, and what of it had to be made again; None where nothing had."""

    number: int
    remade: Remade | None


def export_bundle(
    store: Store, name: str, to: Path, trial: int | None, rule: str, remaker: Remaker | None = None
) -> ExportedTrial:
    """Write a trial's bundle: the very artifact that was measured, its policy, weights, reference, card and run.py.

    The folder appears as a whole or not at all.

    Args:
        to: folder to write; new or empty, parents are made.
        trial: its number; None leaves the choice to `rule`, one of `picks.RULES`, over the front.
        remaker: makes files again that were not kept; without, they are missing.

    Raises:
        UserError: no such study, trial, front or rule; a trial without an artifact; a file that is gone or is not the one
            that was measured; or `to` cannot be written.
    """
    folder = _free_folder(to)
    study = store.get_study(name)
    record = store.get_trial(name, _picked(store, study, rule) if trial is None else trial)
    files = StudyFiles(store, name)
    with tempfile.TemporaryDirectory(prefix="slimfront-export-") as scratch:
        source = _Source(study, record, files, _artifacts(files, record), remaker, Path(scratch))
        paths, remade = source.trial_files()
        contents = _contents(source, paths, remade, executed_precisions(store, name, record.number))
    _write(folder, to, contents)
    return ExportedTrial(record.number, remade)


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
    return pick(points, objectives_of(study), rule, study.baseline).trial


_BROKEN = {TrialState.FAILED: "failed", TrialState.INTERRUPTED: "was interrupted"}


def _artifacts(files: StudyFiles, trial: TrialRecord) -> dict[str, ArtifactRecord]:
    """The trial's newest file of each kind in `BUNDLED`, and the packed one if there is one."""
    if trial.state == "running":
        raise UserError(f"trial {trial.number} is still running; there is nothing to export yet")
    if not trial.state.has_result:
        raise UserError(f"trial {trial.number} {_BROKEN[trial.state]} and cannot be exported: {trial.reason}")
    found = files.newest(trial.number)
    missing = [kind for kind in BUNDLED if kind not in found]
    if missing:
        raise UserError(f"trial {trial.number} kept no {missing[0]} to export; it ended {trial.account}")
    return {kind: found[kind] for kind in (*BUNDLED, PACKED) if kind in found}


@dataclass(frozen=True)
class _Source:
    """Where the files of a bundle come from.

    Attributes:
        artifacts: the records of the trial's files, by kind.
        scratch: folder for what is made again.
    """

    study: StudyRecord
    trial: TrialRecord
    files: StudyFiles
    artifacts: Mapping[str, ArtifactRecord]
    remaker: Remaker | None
    scratch: Path

    def trial_files(self) -> tuple[dict[str, Path], Remade | None]:
        """The trial's files by kind, each either what was measured or made again."""
        try:
            return {kind: self._as_measured(kind, record) for kind, record in self.artifacts.items()}, None
        except ArtifactGoneError:
            if self.remaker is None:
                raise
        made = self.remaker.trial(self.trial, self.scratch / "trial")
        paths = {kind: made[kind] for kind in self.artifacts}
        return paths, Remade.of(paths, self.artifacts)

    def reference(self) -> Path:
        """The reference's artifact, of the size that was measured."""
        try:
            path = self.files.reference(self.artifacts[MODEL])
        except ArtifactGoneError as error:
            if self.remaker is None:
                raise ArtifactGoneError(f"the uncompressed model's artifact cannot be read: {error}") from error
            path = self.remaker.reference(self.scratch / "reference")
        return self._of_the_size_measured(path)

    def _of_the_size_measured(self, path: Path) -> Path:
        found, recorded = path.stat().st_size, self.study.baseline["artifact_bytes"].value
        if found != recorded:
            raise UserError(
                f"{path} is not the uncompressed model that was measured: {found} bytes, not {recorded:.0f}"
            )
        return path

    def _as_measured(self, kind: str, record: ArtifactRecord) -> Path:
        """A file that still is what was measured."""
        what = f"trial {self.trial.number}'s {kind}"
        try:
            path = self.files.path(record)
        except ArtifactGoneError as error:
            raise ArtifactGoneError(f"{what} cannot be read: {error}") from error
        if file_digest(path) != record.sha256:
            raise UserError(f"{what} {path} is not the file that was measured: its sha256 changed")
        return path


def _contents(
    source: _Source, paths: Mapping[str, Path], remade: Remade | None, executed: Mapping[str, str]
) -> dict[str, bytes]:
    """Every file of the bundle by name, all read before anything is written."""
    study, trial, model = source.study, source.trial, paths[MODEL]
    contents = {"policy.json": f"{trial.policy_json}\n".encode()}
    contents |= {f"{kind}{path.suffix}": path.read_bytes() for kind, path in paths.items()}
    contents[f"reference{model.suffix}"] = source.reference().read_bytes()
    target = target_named(study.spec)
    if (script := run_script(target.runtime)) is not None:
        contents["run.py"] = script.encode()
    card = card_document(
        study,
        trial,
        target,
        get_runtime(target.runtime).signature(model),
        executed,
        source.artifacts[MODEL].made_at,
        {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()},
    )
    if remade is not None:
        card["notes"].append(remade.words)
    contents["card.json"] = f"{json.dumps(card, indent=2, ensure_ascii=False)}\n".encode()
    contents["card.md"] = card_page(card, trial.policy).encode()
    return contents


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
