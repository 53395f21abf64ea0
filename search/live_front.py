"""The front of a study while it is searched: its points, its hypervolume, and its snapshots in the store."""

from __future__ import annotations

from collections.abc import Sequence

from ..studies.analysis.front import Objective, Point, hypervolume, pareto_front, reference_point
from ..studies.store.records import TrialRecord
from ..studies.store.store import Store
from ..studies.store.trial_state import TrialState
from ..studies.study_file.spec import StudySpec
from .events import FrontChanged


class LiveFront:
    """The front of all complete trials, from the first `reload` on.

    Attributes:
        baseline: what was measured of the reference, which the hypervolume's reference point follows from.
        points: the points of the front, by number.
    """

    def __init__(self, spec: StudySpec, store: Store) -> None:
        self._spec, self._store = spec, store
        self._stored: list[int] | None = None
        self._take_study()
        self._take([])

    def reload(self, trials: Sequence[TrialRecord] | None = None) -> None:
        """Take all figures as the store has them now.

        Args:
            trials: all of the study, where they have just been read.
        """
        self._take_study()
        self._take(self._store.trials(self._spec.study, TrialState.COMPLETE) if trials is None else trials)

    def _take_study(self) -> None:
        study = self._store.get_study(self._spec.study)
        self.baseline = study.baseline
        self._objectives = [Objective.of(name, study.quality) for name in self._spec.objectives]
        values = {name: measurement.value for name, measurement in self.baseline.items()}
        self._reference_point = reference_point(values, self._objectives, self._spec.constraints)

    def _take(self, trials: Sequence[TrialRecord]) -> None:
        complete = (trial for trial in trials if trial.state is TrialState.COMPLETE)
        self._complete = {trial.number: Point.of(trial, self._objectives) for trial in complete}
        self.points = pareto_front(self._complete.values(), self._objectives)

    @property
    def hypervolume(self) -> float:
        """The hypervolume from the study's fixed reference point."""
        return hypervolume(self.points, self._objectives, self._reference_point)

    def put(self, trial: TrialRecord) -> FrontChanged | None:
        """Take a complete trial with its newest figures, and store the front; how it changed, None where it did not."""
        before = {point.trial for point in self.points}
        is_new, point = trial.number not in self._complete, Point.of(trial, self._objectives)
        self._complete[trial.number] = point
        # What the front dominates stays dominated; only a point that became another may leave what it dominated.
        others = self.points if is_new else list(self._complete.values())
        self.points = pareto_front([*others, point] if is_new else others, self._objectives)
        self.save()
        after = {point.trial for point in self.points}
        if after == before:
            return None
        return FrontChanged(trial, tuple(sorted(after)), joined=trial.number in after - before)

    def save(self) -> None:
        """Store the front, unless its members are those that were stored last."""
        members = [point.trial for point in self.points]
        if members and members != self._stored:
            self._store.save_front(self._spec.study, members, self.hypervolume)
            self._stored = members
