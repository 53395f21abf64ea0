"""Whether a study's trial goes on with its recovery, from what its stages and earlier trials found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ...core.measurement import Measurement
from ...core.metrics import is_quality
from ...core.texts import epochs_text
from ...studies.analysis.front import Objective
from ...studies.store.records import MeasurementRecord, TrialRecord
from ...studies.store.trial_state import TrialState
from ...studies.study_file.spec import StudySpec
from ..trials.worker import Stage
from .halving import HalvingDecision, SuccessiveHalving


class Rungs:
    """The rungs of a study; without any, nothing is ever decided.

    A recovery that has ended is not compared with others; what it had at an earlier rung is. A trial that goes on after all is a
    retry of the one that was stopped, and is not judged again at the rungs that one passed.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._names = spec.objectives
        self._looks = spec.rungs.recovery if spec.rungs else ()
        signs = [Objective.of(name).sign for name in spec.objectives]
        self._halving = SuccessiveHalving(signs, spec.rungs.reduction) if spec.rungs else None
        self._came: dict[int, list[int]] = defaultdict(list)
        self._stopped: dict[int, int] = {}
        self._taken_up: set[int] = set()

    def decision(
        self, number: int, stage: Stage, measured: Mapping[str, Measurement], retry_of: int | None = None
    ) -> HalvingDecision | None:
        """How a trial stands after a stage among those that got as far; None where nothing is to be decided.

        Args:
            measured: all that was measured of the trial so far, this stage's figures too.
            retry_of: the trial whose policy it runs again.
        """
        if stage.name not in ("scored", "recovered") or (stage.final and stage.rung > 0):
            return None
        if stage.rung <= self.passed(retry_of):
            return None
        decision = self._arrive(number, stage.rung, {name: measurement.value for name, measurement in measured.items()})
        return None if stage.final else decision

    def stop(self, number: int, rung: int) -> None:
        """Note that a trial was stopped."""
        self._stopped[number] = rung

    def passed(self, number: int | None) -> int:
        """The rung that a retry of a stopped trial has passed already; -1 where that trial was not stopped."""
        return self._stopped.get(number, -1) if number is not None else -1

    def promoted(self) -> int | None:
        """The best trial, of the highest rung, that was stopped where it would go on now; None without any."""
        for rung in sorted(self._came, reverse=True):
            assert self._halving is not None  # nothing comes without it
            for number in self._stopped_of(rung, self._halving.best(rung)):
                return number
        return None

    def next_in_line(self, most: int) -> list[int]:
        """The stopped trials that may go on first of all, at most so many: of the highest rung, the best."""
        if self._halving is None:
            return []
        rungs = sorted(self._came, reverse=True)
        return [number for rung in rungs for number in self._stopped_of(rung, self._halving.order(rung))][:most]

    def _stopped_of(self, rung: int, order: Sequence[int]) -> list[int]:
        """Of those that came to a rung, by the order they came, the trials that were stopped there and have not gone on since."""
        came = [self._came[rung][index] for index in order]
        return [number for number in came if self._stopped.get(number) == rung and number not in self._taken_up]

    def take_up(self, number: int) -> None:
        """Note that a stopped trial goes on after all."""
        self._taken_up.add(number)

    def resume(self, trial: TrialRecord, history: Sequence[MeasurementRecord]) -> None:
        """Note what a trial of an earlier run had at each rung it was at."""
        if trial.retry_of in self._stopped:
            self.take_up(trial.retry_of)
        if self._halving is None or not trial.state.has_result:
            return
        passed = self.passed(trial.retry_of)
        looks = sorted({record.rung for record in history if is_quality(record.measurement.name)})
        for rung in looks if trial.state is TrialState.PRUNED else looks[: max(1, len(looks) - 1)]:
            if rung > passed:
                self._arrive(trial.number, rung, _known_at(history, rung))
        if trial.rung is not None:
            self.stop(trial.number, trial.rung)

    def _arrive(self, number: int, rung: int, values: Mapping[str, float]) -> HalvingDecision | None:
        if self._halving is None or (rung == 0 and 0 not in self._looks) or any(n not in values for n in self._names):
            return None
        self._came[rung].append(number)
        return self._halving.arrive(rung, [values[name] for name in self._names])


def _known_at(history: Sequence[MeasurementRecord], rung: int) -> dict[str, float]:
    """Metric -> the newest value that was measured up to a rung."""
    return {r.measurement.name: r.measurement.value for r in history if r.rung <= rung}


def stopped_text(stage: Stage, decision: HalvingDecision, epochs: float) -> str:
    """Why a trial whose recovery would have taken `epochs` was stopped after `stage`."""
    trained = f"{stage.epochs:g} of {epochs_text(epochs)}"
    return f"stopped at rung {stage.rung}, {trained}: place {decision.place} of {decision.of}, {decision.kept} go on"


def confirmed_rung(spec: StudySpec) -> int:
    """Rung of the figures made at the end of a search: one beyond the last of recovery."""
    return 2 if spec.rungs is None else len([fraction for fraction in spec.rungs.recovery if fraction]) + 1
