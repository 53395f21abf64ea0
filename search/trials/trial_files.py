"""The files of a search's trials: put into the artifact store as they are recorded, and let go as the study's `keep` says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ...hardware_profiles.runtimes.base import Artifact
from ...studies.analysis.front import Point
from ...studies.files.remade import Remade
from ...studies.files.study_files import HEAVY, MODEL, WEIGHTS, StudyFiles
from ...studies.store.records import TrialRecord
from ...studies.study_file.spec import StudySpec
from .prepared_study import PreparedStudy
from .recovered import RecoveredWeights
from .remaking import make_again


class _Front(Protocol):
    @property
    def points(self) -> Sequence[Point]: ...


class TrialFiles:
    """Which trials of a study keep their files.

    Ownership: the study's driver alone; nothing here is safe to share between threads.

    Args:
        folder: of the files that trials make.
        front: as it is at each moment; trials within noise of it are on it.

    Attributes:
        recovered: weights that other trials may start from, which are kept while they can serve.
    """

    def __init__(self, files: StudyFiles, folder: Path, spec: StudySpec, front: _Front) -> None:
        self._files, self._folder, self._keep, self._front = files, folder, spec.keep, front
        self.recovered = RecoveredWeights(files, spec)
        self._held: dict[int, set[str]] = defaultdict(set)
        for number, kind in files.held():
            self._held[number].add(kind)

    def folder_of(self, number: int) -> Path:
        """Where a trial's files are made."""
        return self._folder / f"trial-{number:05d}"

    def put(self, number: int, artifacts: Mapping[str, Artifact]) -> None:
        """Keep the files of a stage; those in the trial's own folder are moved."""
        for kind, artifact in artifacts.items():
            take = artifact.path.is_relative_to(self.folder_of(number).resolve())
            self._files.put(number, kind, artifact.path, artifact.sha256, artifact.bytes, take=take)
            if kind in HEAVY:
                self._held[number].add(kind)

    def end(self, number: int, running: Collection[int]) -> None:
        """Remove what is of no use now that a trial has ended.

        That are files that it made and that were not put, as of one that a constraint ended early; and what `keep` does not ask
        for, of all trials but those that are on the front or still run. Weights that may serve trials of the same structure
        stay.
        """
        for path in self.folder_of(number).glob("*"):
            if path.stem in HEAVY:
                path.unlink()
        with suppress(OSError):  # other files of the trial are in it
            self.folder_of(number).rmdir()
        if self._keep == "all":
            return
        serving = self._serving()
        for number in self._held.keys() - {*self._on_front(), *running}:
            self._remove(number, {WEIGHTS} if number in serving else set())

    def take_back(self, number: int) -> bool:
        """Keep a trial's files again that were let go, where another trial has the very same; whether its model is there then.

        Without this they would go with the other trial's.
        """
        newest = self._files.newest(number)
        there = {kind: self._files.found(number, kind) for kind in newest}
        for kind, record in newest.items():
            if record.removed_at is not None and (path := there[kind]) is not None:
                self._files.put(number, kind, path, record.sha256, record.bytes, take=False)
                self._held[number].add(kind)
        return there.get(MODEL) is not None

    def make_again(self, prepared: PreparedStudy, trial: TrialRecord) -> Remade:
        """Have a trial that has ended have its files again, made from its policy."""
        before, folder = self._files.newest(trial.number), self.folder_of(trial.number)
        made = make_again(prepared, trial, folder, self.recovered)
        remade = Remade.of({kind: artifact.path for kind, artifact in made.items() if kind in before}, before)
        self.put(trial.number, made)
        return remade

    def finish(self) -> None:
        """Remove what is of no use once a search has ended and its front is confirmed."""
        if self._keep == "all":
            return
        for number in self._held.keys() - (self._on_front() if self._keep == "front" else set()):
            self._remove(number, set())

    def _on_front(self) -> set[int]:
        return {point.trial for point in self._front.points}

    def _serving(self) -> set[int]:
        """A trial for each structure that others may start from, of those that still have weights."""
        having = {number for number, kinds in self._held.items() if WEIGHTS in kinds}
        found = (next((number for number in numbers if number in having), None) for numbers in self.recovered.recent)
        return {number for number in found if number is not None}

    def _remove(self, number: int, but: set[str]) -> None:
        if unwanted := self._held[number] - but:
            self._files.remove(number, unwanted)
        self._held[number] -= unwanted
        if not self._held[number]:
            del self._held[number]
