"""The front confirmed: its points scored once on the test split by workers, and timed again one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from shutil import rmtree

from ...core.errors import EvaluationError, LoweringError, SearchError
from ...core.interrupts import Interrupts, uninterrupted
from ...core.measurement import Measurement
from ...core.metrics import Phase, is_confirmed
from ...evaluators.evaluator import LoweredCandidate
from ...evaluators.registry import measure
from ...evaluators.scores import Scores
from ...hardware_profiles.bench.timer import TIMING_SECONDS, Timer
from ...hardware_profiles.runtimes.base import Artifact
from ...studies.files.sample_scores import keep_samples
from ...studies.files.study_files import MODEL
from ..driver import Search
from ..events import FilesRemade, TrialConfirmed, TrialUnconfirmed
from ..execution.base import Runner
from ..execution.local import LocalRunner
from ..fidelity.rungs import confirmed_rung
from .split_scoring import SplitScoring

SECONDS = 2 * TIMING_SECONDS
"""The most seconds of one timing of a point of the front."""

UNCONFIRMED = "not confirmed: "
"""What the part of a trial's reason begins with that says why the end of the search could not measure it."""


def confirm_front(search: Search, runner: Runner | None = None) -> None:
    """Measure every point of the front again, the very files that export hands out.

    New figures may change the front; a trial that joins it is confirmed too, its files made again where they were not kept. A point
    that cannot be measured stays on the front, with the reason in its row.

    Args:
        runner: its workers score, all slots at once; without one this process does.

    Raises:
        EvaluationError: the uncompressed model cannot be scored on the test split.
        SearchError: not one point can be measured.
    """
    own = closing(LocalRunner(search, isolated=False)) if runner is None else nullcontext(runner)
    with own as workers, search.prepared.bench(search.reference.artifact) as bench:
        if not search.prepared.target.predict:
            search.take_quiet_moment(bench)
        _Confirmation(search, workers, bench).run()


@dataclass
class _Confirmation:
    """The confirmation of one search; `confirmed` and `problems` are of trials that need not be measured any more."""

    search: Search
    runner: Runner
    bench: Timer
    confirmed: set[int] = field(default_factory=set)
    problems: dict[int, str] = field(default_factory=dict)

    def run(self) -> None:
        """Confirm points until none of the front waits."""
        self.confirmed = self._confirmed_before()
        while waiting := self._waiting:
            artifacts = {number: self._artifact(number) for number in waiting}
            scoring = self._scored({number: artifact for number, (artifact, _) in artifacts.items()})
            for number, (artifact, phases) in artifacts.items():
                if number in scoring.problems:
                    self._give_up(number, scoring.problems[number])
                elif number in self._waiting:  # still on the front
                    self._measure(number, artifact, phases, scoring)
        if self.problems and not self.confirmed:
            number, problem = min(self.problems.items())
            raise SearchError(f"no point of the front could be confirmed: trial {number}: {problem}")

    def _confirmed_before(self) -> set[int]:
        """Points an earlier run of the study confirmed, and whose files are there if the study keeps any."""
        search = self.search
        confirmed = {point.trial for point in search.front if is_confirmed(point.measurements)}
        return {number for number in confirmed if search.spec.keep == "none" or search.kept.take_back(number)}

    @property
    def _waiting(self) -> list[int]:
        settled = self.confirmed | self.problems.keys()
        return [point.trial for point in self.search.front if point.trial not in settled]

    def _scored(self, artifacts: Mapping[int, Artifact]) -> SplitScoring:
        """Have the workers score artifacts on the test split."""
        folder = self.search.folder / "confirming"
        paths = {number: artifact.path for number, artifact in artifacts.items()}
        scoring = SplitScoring(self.search, paths, self.runner.slots, folder)
        try:
            with Interrupts() as interrupts:
                self.runner.run(scoring, interrupts)
            keep_samples(self.search.files, None, scoring.reference, folder)
            for number in artifacts.keys() - scoring.problems.keys():
                keep_samples(self.search.files, number, scoring.of(number), folder)
        finally:
            rmtree(folder, ignore_errors=True)  # it may not have been made
        return scoring

    def _measure(self, number: int, artifact: Artifact, phases: Sequence[Phase], scoring: SplitScoring) -> None:
        search = self.search
        try:
            measured = self._measured(artifact, phases, scoring.of(number), scoring.reference)
        except (EvaluationError, LoweringError) as error:
            self._give_up(number, str(error))
            return
        search.remeasured(number, measured, confirmed_rung(search.spec))
        self._note(number, None)
        self.confirmed.add(number)
        search.tell(TrialConfirmed(number, len(self.confirmed), len(self.confirmed) + len(self._waiting)))

    def _measured(
        self, artifact: Artifact, phases: Sequence[Phase], scores: Scores, reference: Scores
    ) -> list[Measurement]:
        search = self.search
        reference_there = replace(search.reference, test=reference)
        context = replace(search.prepared.context, bench=self.bench, reference=reference_there, timing_seconds=SECONDS)
        return measure(LoweredCandidate(None, artifact, test=scores), context, *phases)

    def _give_up(self, number: int, problem: str) -> None:
        self.problems[number] = problem
        self._note(number, problem)
        self.search.tell(TrialUnconfirmed(number, problem))

    @uninterrupted()
    def _note(self, number: int, problem: str | None) -> None:
        """Have the row of a trial say why it is not confirmed, after what it says already; nothing any more where it is."""
        store, study = self.search.store, self.search.spec.study
        before = store.get_trial(study, number).reason
        said = [
            (before or "").partition(UNCONFIRMED)[0].removesuffix("; "),
            f"{UNCONFIRMED}{problem}" if problem else "",
        ]
        if (reason := "; ".join(filter(None, said)) or None) != before:
            store.set_reason(study, number, reason)

    def _artifact(self, number: int) -> tuple[Artifact, Sequence[Phase]]:
        """A point's artifact, and what is to be measured of it: accuracy too, where it is made again and is another file."""
        search = self.search
        if search.kept.take_back(number):
            return Artifact.of(search.files.path(search.files.newest(number)[MODEL])), ("confirmed",)
        remade = search.kept.make_again(search.prepared, search.store.get_trial(search.spec.study, number))
        search.tell(FilesRemade(number, remade))
        phases: Sequence[Phase] = ("scored", "confirmed") if MODEL in remade.differing else ("confirmed",)
        return Artifact.of(search.files.path(search.files.newest(number)[MODEL])), phases
