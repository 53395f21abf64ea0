"""The driver of a search: proposes policies, stores what workers find, keeps the front.

It is the only writer: of Optuna's tables through `OptunaStudy`, of slimfront's through `Store`. Runners (`local`,
`distributed`) call `propose`, `record` and `interrupt`, and know nothing of either. Ctrl-C comes between these calls, so
that both always tell the same.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optuna.samplers import BaseSampler

from ..core.interrupts import uninterrupted
from ..core.measurement import Measurement
from ..core.metrics import is_confirmed
from ..core.threads import usable_threads
from ..hardware_profiles.runtimes.base import Artifact
from ..spaces.policies.candidate import Candidate
from ..spaces.policies.policy import Policy
from ..spaces.space import Choice
from ..studies.analysis.convergence import stalled
from ..studies.analysis.front import Objective, Point, hypervolume, pareto_front, reference_point
from ..studies.reports.progress import has_begun, is_paid, ran
from ..studies.store.executed import KIND as PRECISIONS
from ..studies.store.records import INTERRUPTIONS, TrialRecord
from ..studies.store.store import Store
from .bookkeeping import MOST_RETRIES, Bookkeeping
from .fidelity.halving import HalvingDecision
from .fidelity.rungs import Rungs, stopped_text
from .optuna.attributes import DUPLICATE, STOPPED_EPOCHS, STOPPED_VALUES
from .optuna.sampler_factory import make_sampler
from .optuna.study import OptunaStudy
from .sampler.study_terms import greedy_policies
from .sampler.untried import Untried
from .sensitivity import Sensitivity, known_damage
from .study_setup import open_reference, open_study
from .time_budget import TimeBudget
from .transfer import earlier_trials
from .trials.given_workload import pickled_registrations
from .trials.prepared_study import PreparedStudy
from .trials.recovered import RecoveredWeights
from .trials.worker import PRECISIONS_FILE, Stage, WorkerSetup, cores_beside, keep

MAX_ANCHORS = 12
CONFIRMING_SECONDS = 3.0
"""For which a point of the front is timed again at the end, with the loading of its artifact."""

FIRST_FAILURES = 8
"""Trials of workers that fail before any has a result, after which a search stops: something else than policies is broken."""


@dataclass(frozen=True)
class Proposal:
    """A policy to try; its files go to `folder`.

    Attributes:
        recovered: weights of the same structure after the same recovery, which need not be done again; None without.
        limit_s: seconds after which the trial is ended; one that is not the study's `trial_timeout_s` is what the search has left,
            and a trial that it ends is tried again.
    """

    number: int
    policy: Policy
    folder: Path
    recovered: Path | None = None
    limit_s: float | None = None


@dataclass
class _Running:
    """A trial that was proposed and has not ended."""

    policy: Policy
    retry_of: int | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)
    remark: str | None = None


Listener = Callable[[str, int, str], None]
"""(event, trial number, text): "stage", "complete", "infeasible", "stopped", "failed", "duplicate" or "front"; "sensitivity" with how many are
measured, "unmeasured" with what could not be, "fallback" once another sampler takes over."""


class Search:
    """One run of a study.

    Args:
        prepared: what is searched.
        store: open; this process becomes the study's only driver.
        artifacts: folder that files of trials are kept in; workers must reach it.
        listener: told of everything that happens.
        started: `time.monotonic()` when the user gave the command, which the budget of time is counted from; now by default.

    Attributes:
        stopped_because: why the search cannot go on; None while it can.

    Raises:
        StoreError: the database holds a study of that name that is not this one.
    """

    def __init__(
        self,
        prepared: PreparedStudy,
        store: Store,
        artifacts: Path,
        listener: Listener = lambda *_: None,
        started: float | None = None,
    ) -> None:
        self.prepared, self.spec, self.store = prepared, prepared.spec, store
        self.folder = artifacts.resolve() / self.spec.study
        self.objectives = [Objective.of(name) for name in self.spec.objectives]
        self._listener = listener
        open_study(prepared, store)
        self.reference = open_reference(prepared, store, self.folder / "reference")
        self._reference_point = reference_point(self._baseline(), self.objectives, self.spec.constraints)
        started = time.monotonic() if started is None else started
        self.time = TimeBudget(self.spec.budget.timeout_s, started, self._confirmation_seconds())
        self.stopped_because: str | None = None
        self._sensitivity = Sensitivity(store, prepared, self.time.for_sensitivity, listener)
        self._learned = not self._sensitivity.missing
        self._seen: dict[str, int] = {}
        self._untried = Untried(prepared.space, self._seen, f"{self.spec.seed}/spare")
        self._optuna = OptunaStudy(self.spec, prepared.space, store, self._sampler)
        self._books = Bookkeeping(self.spec, store, self._optuna)
        self._running: dict[int, _Running] = {}
        self._recovered = RecoveredWeights(store, self.spec)
        self._rungs = Rungs(self.spec)
        self._fell_back, self._fallback = False, None
        self._load_trials()

    # What runners call

    def propose(self) -> Proposal | None:
        """The next policy to try, stored as running; None where the budget is spent or the space exhausted."""
        self._learn_sensitivity()
        return self._propose()

    @uninterrupted()
    def _propose(self) -> Proposal | None:
        if self.is_over:
            return None
        if self._is_spent:
            return self._take_up()
        while self._first or self._untried.spare() is not None:
            if self._first:
                self._optuna.enqueue(*self._first.popleft())
            number, parameters, attributes = self._optuna.ask()
            self._note_fallback(number)
            policy = self.prepared.space.policy(parameters)
            if policy.digest not in self._seen or "retry_of" in attributes:
                return self._start(number, policy, attributes)
            # Nothing that was proposed here: a trial that someone else enqueued in the study.
            self._optuna.fail(number, f"{DUPLICATE} {self._seen[policy.digest]}, not tried again")
            self._listener("duplicate", number, f"{DUPLICATE} {self._seen[policy.digest]}")
        self._exhausted = True
        return self._propose()

    def _take_up(self) -> Proposal:
        """A stopped trial that would go on now, its policy run again; it is charged to the budget once."""
        number = self._rungs.promoted()
        assert number is not None  # the search would be over
        self._rungs.take_up(number)
        policy = self.store.get_trial(self.spec.study, number).policy
        self._optuna.enqueue(self.prepared.space.parameters(policy), {"retry_of": number})
        retry, _, attributes = self._optuna.ask()
        return self._start(retry, policy, attributes)

    def try_uncompressed(self) -> None:
        """Make the uncompressed model the first trial of a new study, if the space holds it.

        The baseline has just been measured of the very same model: no worker need do it again.
        """
        if not (self._is_new and self.prepared.space.anchors()[0].is_uncompressed):
            return
        proposal = self.propose()
        if proposal is None:
            return
        baseline = self.store.get_study(self.spec.study).baseline
        folder = self.reference.artifact.path.parent
        candidate = Candidate(proposal.policy, self.prepared.context.workload.model)
        files = keep(candidate, self.reference.artifact, folder)
        if (precisions := folder / PRECISIONS_FILE).is_file():  # gone with its folder, or never there in an old study
            files[PRECISIONS] = Artifact.of(precisions)
        self.record(proposal.number, Stage("scored", measurements=list(baseline.values()), artifacts=files))
        self.finish(proposal.number)

    @uninterrupted()
    def record(self, number: int, stage: Stage) -> None:
        """Store what a stage of a trial found."""
        running = self._running[number]
        if not running.measurements:
            self.store.set_worker(self.spec.study, number, stage.worker)
        running.measurements.update({m.name: m for m in stage.measurements})
        self.store.add_measurements(self.spec.study, number, stage.measurements, stage.rung, self.prepared.target.name)
        for kind, artifact in stage.artifacts.items():
            self.store.record_artifact(
                self.spec.study, number, kind, str(artifact.path), artifact.sha256, artifact.bytes
            )
        self._listener("stage", number, stage.name)
        if stage.reason is not None:
            self.fail(number, stage.reason)

    def verdict(self, number: int, stage: Stage) -> HalvingDecision | None:
        """How a trial stands among those that got as far; None where nothing is to be decided.

        To be asked once a stage, before or after it is recorded.
        """
        running = self._running.get(number)
        if running is None or running.remark is not None:  # failed; or its weights are recovered already
            return None
        measured = {**running.measurements, **{m.name: m for m in stage.measurements}}
        return self._rungs.verdict(number, stage, measured, running.retry_of)

    @uninterrupted()
    def stop(self, number: int, stage: Stage, verdict: HalvingDecision) -> None:
        """End a trial that is not worth more training, all its stages recorded so far."""
        running = self._running.pop(number)
        self._rungs.stop(number, stage.rung)
        reason = stopped_text(stage, verdict, running.policy.recovery.epochs)
        told = [running.measurements[name].value for name in self.spec.objectives]
        attributes = {"rung": stage.rung, STOPPED_EPOCHS: stage.epochs, STOPPED_VALUES: told}
        self._ended(self._books.close(number, "infeasible", reason, running.measurements, attributes))
        self._listener("stopped", number, reason)

    @uninterrupted()
    def finish(self, number: int) -> None:
        """End a trial whose stages have all been recorded, unless it failed."""
        if number not in self._running:
            return
        running = self._running.pop(number)
        state, reason = self._books.judged(running.measurements)
        trial = self._books.close(number, state, reason or running.remark, running.measurements)
        self._ended(trial)
        self._listener(state, number, reason)
        if state == "complete":
            self._add_point(trial)

    @uninterrupted()
    def fail(self, number: int, reason: str) -> None:
        """End a trial that broke; it counts against the budget."""
        running = self._running.pop(number)
        self._ended(self._books.close(number, "failed", reason, running.measurements))
        self._listener("failed", number, reason)

    @uninterrupted()
    def interrupt(self) -> None:
        """End every trial still running, wherever it was interrupted; the next run of the study tries their policies again."""
        self._sensitivity.stop()
        for trial in self._books.interrupt():
            self._seen.pop(trial.digest, None)
        self._running.clear()

    def worker_setup(self, workers: int) -> WorkerSetup:
        """What workers need; with `workers` > 0 they are kept off the bench's cores and share the others."""
        target = self.prepared.target
        threads = usable_threads(cores_beside(target)) // workers if workers else self.prepared.context.threads
        return WorkerSetup(
            workload=self.spec.workload,
            workload_options=self.spec.workload_options,
            base_folder=self.spec.base_folder,
            target=target,
            groups=self.prepared.groups,
            seed=self.spec.seed,
            batch_size=self.spec.recovery.batch_size,
            constraints=self.spec.constraints,
            reference=self.reference,
            kept_off_bench=workers > 0,
            threads=max(1, threads),
            metrics=self.spec.metrics,
            rungs=self.spec.rungs,
            pickled_workload=self.prepared.pickled_workload,
            registrations=pickled_registrations(),
        )

    # What reports ask

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent, counting trials that still run, and no stopped trial would go on now."""
        if self.stopped_because is not None:
            return True
        return self._time_is_spent or (self._is_spent and self._rungs.promoted() is None)

    @property
    def _time_is_spent(self) -> bool:
        if math.isinf(self.time.left):
            return False
        unconfirmed = sum(not is_confirmed(point.measurements) for point in self.front)
        return self.time.is_spent(self._durations, unconfirmed)

    @property
    def _is_spent(self) -> bool:
        """Whether no new policy is to be tried: the budget of trials or patience is spent, or the space exhausted."""
        trials = self.spec.budget.trials
        spent = self._finished + len(self._running)
        return (trials is not None and spent >= trials) or self._exhausted or self._converged

    @property
    def _converged(self) -> bool:
        patience = self.spec.budget.patience
        if patience is None or self._finished < MAX_ANCHORS + patience:
            return False
        trials = sum(trial.state != "running" for trial in self.store.trials(self.spec.study))
        return stalled(self.store.fronts(self.spec.study), trials, patience)

    @property
    def finished(self) -> int:
        """Trials of the study that have ended, interrupted ones left out."""
        return self._finished

    @property
    def front(self) -> list[Point]:
        """The current front."""
        return pareto_front(self._points.values(), self.objectives)

    @property
    def hypervolume(self) -> float:
        """Hypervolume of the front from the study's fixed reference point."""
        return hypervolume(self.front, self.objectives, self._reference_point)

    @property
    def optuna(self) -> OptunaStudy:
        """The Optuna study, for the dashboard's notes and figures."""
        return self._optuna

    @uninterrupted()
    def remeasured(self, number: int, measurements: list[Measurement], rung: int) -> None:
        """Store newer figures of a trial that has ended, and let the front follow."""
        self.store.add_measurements(self.spec.study, number, measurements, rung, self.prepared.target.name)
        self._add_point(self.store.get_trial(self.spec.study, number))

    # How it starts

    def _baseline(self) -> dict[str, float]:
        """What was measured of the uncompressed model."""
        return {name: m.value for name, m in self.store.get_study(self.spec.study).baseline.items()}

    def _confirmation_seconds(self) -> float:
        """Seconds that confirming one point of the front takes, about."""
        workload = self.prepared.context.workload
        return CONFIRMING_SECONDS + self.reference.scoring_seconds * len(workload.test) / len(workload.validation)

    def _sampler(self, trials_so_far: int) -> BaseSampler:
        earlier = earlier_trials(self.store, self.spec, self.prepared.space) if self.spec.transfer else []
        return make_sampler(
            self.prepared, self._baseline(), trials_so_far, earlier, self._known_damage(), self._untried
        )

    def _known_damage(self) -> dict[str, dict[Choice, float]]:
        return known_damage(self.prepared.space, self._sensitivity.records)

    def _learn_sensitivity(self) -> None:
        """Have what single choices damage measured: by a thread while workers run, or here once the anchors have ended."""
        if self._learned or self.is_over:
            return
        if self.spec.workers and not self._sensitivity.has_started:
            self._sensitivity.start(cores_beside(self.prepared.target))
        elif not self.spec.workers and not self._first:
            self._sensitivity.measure()
        if not self._sensitivity.has_started or self._sensitivity.is_running():
            return
        self._learned = True
        self._optuna.renew_sampler()
        self._first += self._enqueued(self._path())

    def _load_trials(self) -> None:
        """Take up what earlier runs left: finished trials, and orphans to try again."""
        self._exhausted = False
        self._points: dict[int, Point] = {}
        self._finished = 0
        self._durations: list[float] = []
        self._first: deque[tuple[Mapping[str, Choice], Mapping[str, object]]] = deque()
        self._is_new = self._optuna.is_new
        self._books.repair()
        trials = self.store.trials(self.spec.study)
        retried = {trial.retry_of for trial in trials}
        self._begun = has_begun(trials)
        failures = Counter(trial.digest for trial in trials if trial.state == "failed")
        for trial in trials:
            if is_paid(trial, self._begun):
                self._take_over(trial)
            elif trial.reason not in INTERRUPTIONS and failures[trial.digest] > MOST_RETRIES:
                self._seen[trial.digest] = trial.number
            elif trial.number not in retried and self._rungs.passed(trial.retry_of) < 0:
                self._first.append((self.prepared.space.parameters(trial.policy), {"retry_of": trial.number}))
        self._tried = {trial.digest for trial in trials}
        path = self._path() if self._learned else []
        self._first += self._enqueued([*self.prepared.space.anchors()[:MAX_ANCHORS], *path])
        waiting = self._optuna.waiting()  # a driver that was killed had them enqueued: they are asked first
        self._first = deque(item for item in self._first if item[0] not in waiting)
        self._save_front()

    def _take_over(self, trial: TrialRecord) -> None:
        """Know again what an earlier run found."""
        self._ended(trial)
        self._rungs.resume(trial, self.store.measurement_history(self.spec.study, trial.number))
        self._seen[trial.digest] = trial.number
        if trial.state == "complete":
            self._points[trial.number] = Point.of(trial, self.objectives)

    def _path(self) -> list[Policy]:
        """The greedy path where single damages are known."""
        return greedy_policies(self.prepared, self._known_damage()) if self._sensitivity.records else []

    def _enqueued(self, policies: Iterable[Policy]) -> list[tuple[Mapping[str, Choice], Mapping[str, object]]]:
        """What is to be enqueued for these policies, each once and those left out that the study has tried."""
        known = self._tried | self._seen.keys()
        new = dict.fromkeys(policy for policy in policies if policy.digest not in known)
        return [(self.prepared.space.parameters(policy), {}) for policy in new]

    def _note_fallback(self, number: int) -> None:
        """Say where the study is looked at while another sampler proposes; and tell the listener, the first time."""
        if (fallback := self._optuna.fallback) == self._fallback:
            return
        if fallback is not None and not self._fell_back:
            self._listener("fallback", number, fallback)
        self._fell_back, self._fallback = True, fallback
        self.store.set_remark(self.spec.study, fallback)

    def _start(self, number: int, policy: Policy, attributes: Mapping[str, object]) -> Proposal:
        retry_of = int(str(attributes["retry_of"])) if "retry_of" in attributes else None
        self.store.start_trial(self.spec.study, number, policy, retry_of=retry_of)
        self._seen[policy.digest] = number
        self._running[number] = running = _Running(policy, retry_of)
        self._optuna.annotate(number, {"policy": policy.to_json(), "digest": policy.digest})
        folder = self.folder / f"trial-{number:05d}"
        source, limit_s = self._recovered.of(policy), self._limit_s
        if source is None:
            return Proposal(number, policy, folder, limit_s=limit_s)
        running.remark = f"recovered weights of trial {source.trial}"
        self._optuna.annotate(number, {"recovered_weights_of": source.trial})
        return Proposal(number, policy, folder, source.path, limit_s)

    @property
    def _limit_s(self) -> float | None:
        """Seconds that a trial which starts now may take; None without a limit."""
        limits = (self.spec.budget.trial_timeout_s, self.time.limit(self._durations))
        return min((limit for limit in limits if limit is not None), default=None)

    def _ended(self, trial: TrialRecord) -> None:
        """Charge a trial to the budget, and keep what later ones may start from."""
        self._finished += self._rungs.passed(trial.retry_of) < 0  # who goes on after all was charged before
        self._recovered.offer(trial)
        if not ran(trial):
            return
        self._durations.append(trial.seconds)
        self._begun |= trial.state != "failed"
        if not self._begun and len(self._durations) >= FIRST_FAILURES:
            self.stopped_because = f"the first {FIRST_FAILURES} trials all failed, the last one: {trial.reason}"

    def _add_point(self, trial: TrialRecord) -> None:
        before = {point.trial for point in self.front}
        self._points[trial.number] = Point.of(trial, self.objectives)
        self._save_front()
        if trial.number in {point.trial for point in self.front} - before:
            self._listener("front", trial.number, "")

    def _save_front(self) -> None:
        if members := [point.trial for point in self.front]:
            self.store.save_front(self.spec.study, members, self.hypervolume)
