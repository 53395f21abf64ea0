"""The driver of a search: proposes policies, stores what workers find, keeps the front.

Only the driver writes to the database: Optuna's tables through `OptunaStudy`, slimfront's through `Store`. Ctrl-C comes between
the calls of runners (`execution.local`, `execution.ray_runner`), so that both sets of tables always agree.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from optuna.samplers import BaseSampler

from ..core.interrupts import uninterrupted
from ..core.measurement import Measurement
from ..hardware_profiles.bench.bench import cores_for_workers
from ..hardware_profiles.bench.timer import Timer
from ..spaces.knobs.kind import by_halves
from ..spaces.policies.policy import Choice, Policy
from ..studies.analysis.front import Point
from ..studies.files.study_files import StudyFiles, folder_at_work
from ..studies.store.records import TrialRecord
from ..studies.store.store import Store
from ..studies.store.trial_state import TrialState
from .bookkeeping import MOST_RETRIES, Bookkeeping, Remarks, RunningTrial
from .budget import MAX_ANCHORS, Budget
from .events import Event, Listener, StageRecorded, TrialFinished, TrialStarted
from .fidelity.halving import HalvingDecision
from .fidelity.rungs import Rungs, stopped_text
from .live_front import LiveFront
from .optuna.attributes import STOPPED_EPOCHS, STOPPED_VALUES
from .optuna.sampler_factory import make_sampler
from .optuna.study import OptunaStudy
from .proposal import Proposal
from .proposals import Asked, Proposals
from .sampler.study_terms import greedy_policies
from .sensitivity import Sensitivity, known_damage
from .study_setup import open_study, quiet_moment, stage_of_baseline, time_budget
from .transfer import earlier_trials
from .trials.baseline import Measuring, measuring_here
from .trials.kept_checkpoints import KeptCheckpoints
from .trials.prepared_study import PreparedStudy
from .trials.trial_files import TrialFiles
from .trials.worker import Stage


class Search:
    """One run of a study.

    Args:
        prepared: what is searched.
        store: open; this process becomes the study's only driver.
        artifacts: absolute folder or URL that files of trials are kept in.
        listeners: hear of every event; `listen` adds more.
        started: `time.monotonic()` when the user gave the command, which the budget of time is counted from; now by default.
        measuring: runs what is found of the uncompressed model; in this process by default.

    Attributes:
        optuna: the Optuna study, for the dashboard's notes and figures.
        folder, files: local, of logs and files at work; and what is kept of trials and reference, which `kept` decides.
        remarks, checkpoints: what is to be known of how the study is searched; of trials that have not ended for good.

    Raises:
        StoreError: the database holds a study of that name that is not this one.
    """

    def __init__(
        self,
        prepared: PreparedStudy,
        store: Store,
        artifacts: Path | str,
        listeners: Sequence[Listener] = (),
        started: float | None = None,
        measuring: Measuring | None = None,
    ) -> None:
        self.store, self._listeners = store, list(listeners)
        self.files = StudyFiles(store, prepared.spec.study)
        self.folder = folder_at_work(store, prepared.spec.study, str(artifacts))
        opening = self.files, str(artifacts), self.folder, self.tell, measuring or measuring_here(prepared.context)
        self.prepared, self.reference = open_study(prepared, store, *opening)
        prepared, self.spec = self.prepared, self.prepared.spec
        self._front = LiveFront(self.spec, store)
        left = time_budget(prepared, self.reference, time.monotonic() if started is None else started)
        self.budget = Budget(self.spec, store, left, self.folder, self.reference.artifact)
        self._sensitivity = Sensitivity(store, prepared, left.for_sensitivity, self.tell)
        self._learned = not self._sensitivity.missing
        self._proposals = Proposals(prepared.space, self.spec.seed, self.tell)
        self.optuna = OptunaStudy(self.spec, prepared.space, store, self._sampler)
        self._books = Bookkeeping(self.spec, store, self.optuna)
        self._running: dict[int, RunningTrial] = {}
        self.kept = TrialFiles(self.files, self.folder, self.spec, self._front)
        self._rungs = Rungs(self.spec)
        self.remarks = Remarks(store, self.spec.study, self.tell)
        self.checkpoints = KeptCheckpoints(self.folder)
        self._resume()

    def listen(self, listener: Listener) -> None:
        """Have a listener hear of every event from now on."""
        self._listeners.append(listener)

    def tell(self, event: Event) -> None:
        """Have all listeners hear of an event."""
        for listener in self._listeners:
            listener(event)

    # What runners call

    def propose(self) -> Proposal | None:
        """The next policy to try, stored as running; None where the budget is spent or the space exhausted."""
        self._learn_sensitivity()
        return self._propose()

    @uninterrupted()
    def _propose(self) -> Proposal | None:
        while not self.is_over:
            asked = self._continued() if self._is_spent else self._proposals.next(self.optuna)
            if asked is not None:
                self.remarks.sampler(asked.number, self.optuna.fallback)
                return self._start(asked)
        return None

    def _continued(self) -> Asked:
        """Continue a trial that a rung stopped and that is now among the best; the budget counts both as one."""
        number = self._rungs.promoted()
        assert number is not None  # the search would be over
        self._rungs.take_up(number)
        return self._proposals.again(self.store.get_trial(self.spec.study, number), self.optuna)

    def try_uncompressed(self) -> None:
        """Make the uncompressed model the first trial of a new study, if the space holds it.

        The baseline has just been measured of the very same model: no worker need do it again.
        """
        uncompressed = Policy(float_precision=self.reference.precision)
        if not (self._is_new and self.prepared.space.anchors()[0] == uncompressed):
            return
        if (proposal := self.propose()) is None:
            return
        self.record(
            proposal.number, stage_of_baseline(self.prepared, self.reference, proposal.policy, self._front.baseline)
        )
        self.finish(proposal.number)

    def advance(self, number: int, stage: Stage) -> bool:
        """Record a stage of a trial, then decide whether the trial goes on; one that does not has ended."""
        self.record(number, stage)
        if stage.reason is not None:
            return False
        decision = self._decide(number, stage)
        if decision is None or decision.is_promising:
            return True
        self._stop(number, stage, decision)
        return False

    @uninterrupted()
    def record(self, number: int, stage: Stage) -> None:
        """Store what a stage of a trial found; one with a reason ends the trial as failed."""
        running = self._running[number]
        if not running.measurements:
            self.store.set_worker(self.spec.study, number, stage.worker)
        running.measurements.update({m.name: m for m in stage.measurements})
        self.store.add_measurements(self.spec.study, number, stage.measurements, stage.rung, self.prepared.target.name)
        self.kept.put(number, stage.artifacts)
        self.tell(StageRecorded(number, stage.name, stage.rung))
        if stage.reason is not None:
            self.fail(number, stage.reason)

    def _decide(self, number: int, stage: Stage) -> HalvingDecision | None:
        """How a trial stands among those that got as far; None where nothing is to be decided. Noted once a stage."""
        running = self._running[number]
        if running.remark is not None:  # its weights are recovered already
            return None
        return self._rungs.decision(number, stage, running.measurements, running.retry_of)

    @uninterrupted()
    def _stop(self, number: int, stage: Stage, decision: HalvingDecision) -> None:
        """End a trial that is not worth more training."""
        running = self._running[number]
        self._rungs.stop(number, stage.rung)
        reason = stopped_text(stage, decision, running.policy.recovery.epochs)
        values = [running.measurements[name].value for name in self.spec.objectives]
        attributes = {"rung": stage.rung, STOPPED_EPOCHS: stage.epochs, STOPPED_VALUES: values}
        self._end(number, TrialState.PRUNED, reason, attributes, stage.rung)

    @uninterrupted()
    def finish(self, number: int) -> None:
        """End a trial whose stages have all been recorded, unless it has ended."""
        if number in self._running:
            running = self._running[number]
            state, reason = self._books.judged(running.measurements)
            self._end(number, state, reason or running.remark)

    @uninterrupted()
    def fail(self, number: int, reason: str) -> None:
        """End a trial that broke; it counts against the budget."""
        self._end(number, TrialState.FAILED, reason)

    @uninterrupted()
    def lose(self, number: int, reason: str) -> None:
        """End a trial whose worker is gone for a reason that is not the policy's: it is tried again, and costs nothing."""
        if self._proposals.losses(self._running[number].policy) >= MOST_RETRIES:
            self.fail(number, f"{reason}, as were those of {MOST_RETRIES} tries before")
            return
        running = self._running.pop(number)
        trial = self._books.close(number, TrialState.INTERRUPTED, reason, running.measurements)
        self._proposals.lose(trial, is_queued=not self._rungs.give_back(trial.retry_of))
        self.tell(TrialFinished(trial))

    @uninterrupted()
    def interrupt(self) -> None:
        """End every trial still running, wherever it was interrupted; the next run of the study tries their policies again."""
        self._sensitivity.stop()
        for trial in self._books.interrupt():
            self._proposals.forget(trial)
        self._running.clear()

    # What reports ask

    @property
    def stopped_because(self) -> str | None:
        """Why the search cannot go on; None while it can."""
        return self.budget.stopped_because

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent, counting trials that still run, and no stopped trial would go on now."""
        stops = self.stopped_because is not None or self.budget.is_time_spent(self.front)
        return stops or (self._is_spent and self._rungs.promoted() is None)

    @property
    def _is_spent(self) -> bool:
        """Whether no new policy is to be tried: the budget is spent, or the space exhausted."""
        return self._proposals.is_exhausted or self.budget.is_spent(len(self._running))

    @property
    def finished(self) -> int:
        """How many trials of the study its budget has paid for."""
        return self.budget.charged

    @property
    def front(self) -> list[Point]:
        """The current front."""
        return self._front.points

    @property
    def hypervolume(self) -> float:
        """Hypervolume of the front from the study's fixed reference point."""
        return self._front.hypervolume

    @uninterrupted()
    def remeasured(self, number: int, measurements: list[Measurement], rung: int) -> None:
        """Store newer figures of a trial that has ended, and let the front follow."""
        self.store.add_measurements(self.spec.study, number, measurements, rung, self.prepared.target.name)
        self._add_point(self.store.get_trial(self.spec.study, number))

    @uninterrupted()
    def take_quiet_moment(self, bench: Timer) -> None:
        """Measure the reference's latency again on its bench, and have the front follow where milliseconds do."""
        self.reference = quiet_moment(self.prepared, self.store, self.reference, bench, self.tell)
        self._front.reload()

    # How it starts

    def _sampler(self, trials_so_far: int) -> BaseSampler:
        earlier = earlier_trials(self.store, self.spec, self.prepared.space) if self.spec.transfer else []
        baseline = {name: measurement.value for name, measurement in self._front.baseline.items()}
        known, untried = self._known_damage(), self._proposals.untried
        return make_sampler(self.prepared, baseline, trials_so_far, earlier, known, untried)

    def _known_damage(self) -> dict[str, dict[Choice, float]]:
        return known_damage(self.prepared.space, self._sensitivity.records)

    def _learn_sensitivity(self) -> None:
        """Measure sensitivity: in a thread while Ray workers run, otherwise here once the anchors have ended."""
        if self._learned or self.is_over:
            return
        if self.spec.workers and not self._sensitivity.has_started:
            self._sensitivity.start(cores_for_workers(self.prepared.target))
        elif not self.spec.workers and not self._proposals.has_first:
            self._sensitivity.measure()
        if not self._sensitivity.has_started or self._sensitivity.is_running():
            return
        self._learned = True
        self.optuna.renew_sampler()
        self._proposals.add(self._path())

    def _resume(self) -> None:
        """Load what earlier runs left: finished trials, and interrupted ones to try again."""
        self._is_new = self.optuna.is_new
        self._books.repair()
        trials = self.store.trials(self.spec.study)
        self._front.reload(trials)
        paid = self.budget.resume(trials)
        history = self.store.measurement_histories(self.spec.study) if self.spec.rungs is not None else {}
        for trial in paid:
            self._charge(trial)
            self._rungs.resume(trial, history.get(trial.number, ()))
        self._proposals.resume(trials, paid, self._rungs.is_stopped)
        self._proposals.add([*self.prepared.space.anchors()[:MAX_ANCHORS], *(self._path() if self._learned else [])])
        self._proposals.drop(self.optuna.waiting())  # a driver that was killed had them enqueued
        self._front.save()

    def _path(self) -> list[Policy]:
        """The greedy path, its middle first, if sensitivity is known: time may not suffice for all of it."""
        return by_halves(greedy_policies(self.prepared, self._known_damage())) if self._sensitivity.records else []

    # How trials begin and end

    def _start(self, asked: Asked) -> Proposal:
        number, policy = asked.number, asked.policy
        self.store.start_trial(self.spec.study, number, policy, retry_of=asked.retry_of)
        self._proposals.start(asked)
        self._running[number] = running = RunningTrial(policy, asked.retry_of)
        self.optuna.annotate(number, {"policy": policy.to_json(), "digest": policy.digest})
        if (source := self.kept.recovered.of(policy)) is not None:
            running.remark = f"recovered weights of trial {source.trial}"
            self.optuna.annotate(number, {"recovered_weights_of": source.trial})
        self.tell(TrialStarted(number, policy, asked.retry_of))
        limits = self.budget.limit_s, self.spec.budget.trial_memory_gb
        files = self.kept.folder_of(number), source and source.path
        return Proposal(number, policy, *files, *limits, self.checkpoints.of(policy))

    def _end(
        self,
        number: int,
        state: TrialState,
        reason: str | None,
        attributes: Mapping[str, object] = MappingProxyType({}),
        rung: int | None = None,
    ) -> None:
        """End a running trial, charge it, and let the front follow."""
        running = self._running.pop(number)
        trial = self._books.close(number, state, reason, running.measurements, attributes, rung)
        self._charge(trial)
        self.checkpoints.end(trial, self._rungs.next_in_line)
        self.tell(TrialFinished(trial))
        if state is TrialState.COMPLETE:
            self._add_point(trial)
        self.kept.end(number, self._running)

    def _charge(self, trial: TrialRecord) -> None:
        """Charge a trial to the budget, and keep what later ones may start from."""
        self.budget.charge(trial, is_free=self._rungs.is_stopped(trial.retry_of))
        self.kept.recovered.offer(trial)

    def _add_point(self, trial: TrialRecord) -> None:
        if (change := self._front.put(trial)) is not None:
            self.tell(change)
