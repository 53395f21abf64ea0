"""How a trial ends in the two sets of tables, slimfront's and Optuna's, so that both always agree in the end.

Ours are written first. A driver that is killed in between leaves a trial that has ended here and still runs there;
`Bookkeeping.repair` completes that when the study is opened again, from what ours say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..core.interrupts import uninterrupted
from ..core.measurement import Measurement
from ..spaces.policies.policy import Policy
from ..studies.store.judgement import judged, violations_of
from ..studies.store.records import INTERRUPTED, ORPHANED, TrialRecord, Violation
from ..studies.store.store import Store
from ..studies.store.trial_state import TrialState
from ..studies.study_file.spec import StudySpec
from .events import ClusterRemarked, Listener, SamplerFellBack
from .optuna.attributes import STOPPED
from .optuna.study import OptunaStudy

MOST_RETRIES = 2
"""How often a policy is tried again after its driver was killed, which the policy itself may be the cause of, after its worker's
node was lost, or after it failed before the search had its first result."""


@dataclass
class RunningTrial:
    """A trial that was proposed and has not ended."""

    policy: Policy
    retry_of: int | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)
    remark: str | None = None


class Bookkeeping:
    """The end of each trial of one study, written once."""

    def __init__(self, spec: StudySpec, store: Store, optuna: OptunaStudy) -> None:
        self._spec, self._store, self._optuna = spec, store, optuna

    def judged(self, measurements: Mapping[str, Measurement]) -> tuple[TrialState, str]:
        """State of a trial that ran to its end, and the first constraint that it violates, in words."""
        return judged(self._violations(measurements))

    def close(
        self,
        number: int,
        state: TrialState,
        reason: str | None,
        measurements: Mapping[str, Measurement],
        attributes: Mapping[str, object] = MappingProxyType({}),
        rung: int | None = None,
    ) -> TrialRecord:
        """End a running trial.

        Args:
            attributes: what the dashboard and the sampler are shown of it in addition to its measurements.
            rung: that it was pruned at.
        """
        values = {name: measurement.value for name, measurement in measurements.items()}
        because = {"reason": reason} if state is not TrialState.COMPLETE else {}
        self._optuna.annotate(number, {**values, **attributes, **because})
        violations = self._violations(measurements) if state.has_result else None
        self._store.finish_trial(self._spec.study, number, state, reason, violations, rung=rung)
        trial = self._store.get_trial(self._spec.study, number)
        self._tell_optuna(trial)
        return trial

    def interrupt(self, *, driver_died: bool = False) -> list[TrialRecord]:
        """End every trial that runs as interrupted; those.

        Args:
            driver_died: whether they are left of a driver that was killed.
        """
        reason = ORPHANED if driver_died else INTERRUPTED
        running = self._store.running_trials(self._spec.study)
        for trial in running:
            state = TrialState.INTERRUPTED
            self._store.finish_trial(self._spec.study, trial.number, state, reason, driver_died=driver_died)
        self._optuna.abandon(reason)
        return running

    def repair(self) -> None:
        """Complete what a driver that was killed had begun, and end what it left running."""
        for number in self._optuna.reclaim():
            trial = self._store.find_trial(self._spec.study, number)
            if trial is not None and trial.state.has_ended:
                self._tell_optuna(trial)
        for trial in self._store.running_trials(self._spec.study):
            self._close_orphan(trial)
        self.interrupt(driver_died=True)

    def _close_orphan(self, trial: TrialRecord) -> None:
        study, number = self._spec.study, trial.number
        if self._optuna.has_ended(number):  # a version that wrote Optuna's tables first was killed
            state, reason = self.judged(trial.measurements)
            self._store.finish_trial(study, number, state, reason or None, self._violations(trial.measurements))
            return
        orphaned = sum(t.digest == trial.digest and t.driver_died for t in self._store.trial_summaries(study))
        if orphaned >= MOST_RETRIES:
            reason = f"the search's process died {orphaned + 1} times while this policy ran"
            self._store.finish_trial(study, number, TrialState.FAILED, reason)
            self._optuna.fail(number, reason)

    def _tell_optuna(self, trial: TrialRecord) -> None:
        violations = {violation.constraint: violation.excess for violation in trial.violations}
        if not trial.state.has_result:
            self._optuna.fail(trial.number, trial.reason or "", trial.state)
        elif trial.state is TrialState.PRUNED:
            self._optuna.tell(trial.number, None, {**violations, STOPPED: 1.0})
        else:
            known = [trial.measurements[name].value for name in self._spec.objectives if name in trial.measurements]
            values = known if len(known) == len(self._spec.objectives) else None  # a constraint ended it early
            self._optuna.tell(trial.number, values, violations)

    def _violations(self, measurements: Mapping[str, Measurement]) -> list[Violation]:
        values = {name: measurement.value for name, measurement in measurements.items()}
        return violations_of(self._spec.constraints, values)


class Remarks:
    """The remarks of one run of a study; each is reported once."""

    def __init__(self, store: Store, study: str, tell: Listener) -> None:
        self._store, self._study, self._tell = store, study, tell
        self._fell_back, self._fallback = False, None
        self._of_cluster: list[str] = []

    def sampler(self, trial: int, fallback: str | None) -> None:
        """Note why another sampler proposes, or that none does any more."""
        if fallback == self._fallback:
            return
        if fallback is not None and not self._fell_back:
            self._tell(SamplerFellBack(trial, fallback))
        self._fell_back, self._fallback = True, fallback
        self._store_all()

    @uninterrupted()
    def cluster(self, text: str) -> None:
        """Note something about the machines that trials run on."""
        if text not in self._of_cluster:
            self._of_cluster.append(text)
            self._store_all()
            self._tell(ClusterRemarked(text))

    def _store_all(self) -> None:
        fallback = [self._fallback] if self._fallback is not None else []
        self._store.set_remark(self._study, "; ".join([*fallback, *self._of_cluster]) or None)
