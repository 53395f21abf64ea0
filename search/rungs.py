"""Whether a study's trial goes on with its recovery, from what its stages and earlier trials found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..measurement import Measurement
from ..studies.front import Objective
from ..studies.records import STOPPED_AT, MeasurementRecord, TrialRecord
from ..studies.spec import StudySpec
from .halving import SuccessiveHalving, Verdict
from .sampler_of_study import QUALITY
from .worker import Stage


class Rungs:
    """The rungs of a study; without any, nothing is ever decided.

    A recovery that has ended is compared with nobody: what it had at an earlier rung is.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._names = spec.objectives
        self._looks = spec.rungs.recovery if spec.rungs else ()
        signs = [Objective.of(name).sign for name in spec.objectives]
        self._halving = SuccessiveHalving(signs, spec.rungs.reduction) if spec.rungs else None

    def verdict(self, stage: Stage, measured: Mapping[str, Measurement]) -> Verdict | None:
        """How a trial stands after a stage among those that got as far; None where nothing is to be decided.

        Args:
            measured: all that was measured of the trial so far, this stage's figures too.
        """
        if stage.name not in ("scored", "recovered") or (stage.final and stage.rung > 0):
            return None
        verdict = self._arrive(stage.rung, {name: measurement.value for name, measurement in measured.items()})
        return None if stage.final else verdict

    def resume(self, trial: TrialRecord, history: Sequence[MeasurementRecord]) -> None:
        """Note what a trial of an earlier run had at each rung it was at."""
        if self._halving is None or trial.state == "failed":
            return
        values: dict[str, float] = {}
        looks = sorted({record.rung for record in history if record.measurement.name in QUALITY})
        for rung in looks if trial.outcome == "stopped" else looks[: max(1, len(looks) - 1)]:
            values.update({r.measurement.name: r.measurement.value for r in history if r.rung <= rung})
            self._arrive(rung, values)

    def _arrive(self, rung: int, values: Mapping[str, float]) -> Verdict | None:
        if self._halving is None or (rung == 0 and 0 not in self._looks) or any(n not in values for n in self._names):
            return None
        return self._halving.arrive(rung, [values[name] for name in self._names])


def stopped_text(stage: Stage, verdict: Verdict, epochs: int) -> str:
    """Why a trial whose recovery would have taken `epochs` was stopped after `stage`."""
    trained = f"{stage.epochs:g} of {epochs} epochs"
    return f"{STOPPED_AT} {stage.rung}, {trained}: place {verdict.place} of {verdict.of}, {verdict.kept} go on"


def confirmed_rung(spec: StudySpec) -> int:
    """Rung of the figures made at the end of a search: one beyond the last of recovery."""
    return 2 if spec.rungs is None else len([fraction for fraction in spec.rungs.recovery if fraction]) + 1
