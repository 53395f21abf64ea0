"""The driver of a search: proposes policies, stores what workers find, keeps the front.

It is the only writer: of Optuna's tables through `OptunaStudy`, of slimfront's through `Store`. Runners (`local`,
`distributed`) call `propose`, `record` and `interrupt`, and know nothing of either. Ctrl-C comes between these calls, so
that both always tell the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optuna.samplers import BaseSampler

from ..evaluators.evaluator import Subject
from ..hardware_profiles.runtime import Artifact
from ..interrupts import uninterrupted
from ..measurement import Measurement
from ..spaces.candidate import Candidate
from ..spaces.policy import Policy
from ..spaces.space import Choice
from ..studies.convergence import stalled
from ..studies.executed import KIND as PRECISIONS
from ..studies.front import Objective, Point, hypervolume, pareto_front, reference_point
from ..studies.progress import charged_trials, ran
from ..studies.records import INTERRUPTED, State, TrialRecord
from ..studies.store import Store
from .feasibility import DUPLICATE
from .halving import Verdict
from .opening import open_reference, open_study
from .optuna_study import OptunaStudy
from .policy_sampler import STOPPED, STOPPED_EPOCHS, STOPPED_VALUES
from .problem import Problem
from .recovered import RecoveredWeights
from .rungs import Rungs, stopped_text
from .sampler_of_study import greedy_policies, make_sampler
from .sensitivity import known_damage, single_damages
from .transfer import earlier_trials
from .untried import Untried
from .worker import PRECISIONS_FILE, Stage, WorkerSetup, cores_beside, keep

MAX_ANCHORS = 12


@dataclass(frozen=True)
class Proposal:
    """A policy to try; its files go to `folder`.

    Attributes:
        recovered: weights of the same structure after the same recovery, which need not be done again; None without.
    """

    number: int
    policy: Policy
    folder: Path
    recovered: Path | None = None


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
        problem: what is searched.
        store: open; this process becomes the study's only driver.
        artifacts: folder that files of trials are kept in; workers must reach it.
        listener: told of everything that happens.

    Raises:
        StoreError: the database holds a study of that name that is not this one.
    """

    def __init__(self, problem: Problem, store: Store, artifacts: Path, listener: Listener = lambda *_: None) -> None:
        self.problem, self.spec, self.store = problem, problem.spec, store
        self.folder = artifacts.resolve() / self.spec.study
        self.objectives = [Objective.of(name) for name in self.spec.objectives]
        self._listener = listener
        open_study(problem, store)
        self.reference = open_reference(problem, store, self.folder / "reference")
        self._reference_point = reference_point(self._baseline(), self.objectives, self.spec.constraints)
        self._sensitivities = single_damages(store, problem, listener)
        self._seen: dict[str, int] = {}
        self._untried = Untried(problem.space, self._seen, f"{self.spec.seed}/spare")
        self._optuna = OptunaStudy(self.spec, problem.space, store, self._sampler)
        self._running: dict[int, _Running] = {}
        self._recovered = RecoveredWeights(store, self.spec)
        self._rungs = Rungs(self.spec)
        self._fell_back, self._fallback = False, None
        self._load_trials()
        self._started = time.monotonic()

    # What runners call

    @uninterrupted()
    def propose(self) -> Proposal | None:
        """The next policy to try, stored as running; None where the budget is spent or the space exhausted."""
        if self.is_over:
            return None
        if self._is_spent:
            return self._take_up()
        while self._first or self._untried.spare() is not None:
            if self._first:
                self._optuna.enqueue(*self._first.popleft())
            number, parameters, attributes = self._optuna.ask()
            self._note_fallback(number)
            policy = self.problem.space.policy(parameters)
            if policy.digest not in self._seen or "retry_of" in attributes:
                return self._start(number, policy, attributes)
            # Nothing that was proposed here: a trial that someone else enqueued in the study.
            self._optuna.fail(number, f"{DUPLICATE} {self._seen[policy.digest]}, not tried again")
            self._listener("duplicate", number, f"{DUPLICATE} {self._seen[policy.digest]}")
        self._exhausted = True
        return self.propose()

    def _take_up(self) -> Proposal:
        """A stopped trial that would go on now, its policy run again; it is charged to the budget once."""
        number = self._rungs.promoted()
        assert number is not None  # the search would be over
        self._rungs.take_up(number)
        policy = self.store.get_trial(self.spec.study, number).policy
        self._optuna.enqueue(self.problem.space.parameters(policy), {"retry_of": number})
        retry, _, attributes = self._optuna.ask()
        return self._start(retry, policy, attributes)

    def try_uncompressed(self) -> None:
        """Make the uncompressed model the first trial of a new study, if the space holds it.

        The baseline has just been measured of the very same model: no worker need do it again.
        """
        if not (self._is_new and self.problem.space.anchors()[0].is_uncompressed):
            return
        proposal = self.propose()
        if proposal is None:
            return
        baseline = self.store.get_study(self.spec.study).baseline
        subject = Subject(Candidate(proposal.policy, self.problem.context.workload.model), self.reference.artifact)
        folder = self.reference.artifact.path.parent
        files = keep(subject, folder)
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
        self.store.add_measurements(self.spec.study, number, stage.measurements, stage.rung, self.problem.target.name)
        for kind, artifact in stage.artifacts.items():
            self.store.record_artifact(
                self.spec.study, number, kind, str(artifact.path), artifact.sha256, artifact.bytes
            )
        self._listener("stage", number, stage.name)
        if stage.reason is not None:
            self.fail(number, stage.reason)

    def verdict(self, number: int, stage: Stage) -> Verdict | None:
        """How a trial stands among those that got as far; None where nothing is to be decided.

        To be asked once a stage, before or after it is recorded.
        """
        running = self._running.get(number)
        if running is None or running.remark is not None:  # failed; or its weights are recovered already
            return None
        measured = {**running.measurements, **{m.name: m for m in stage.measurements}}
        return self._rungs.verdict(number, stage, measured, running.retry_of)

    @uninterrupted()
    def stop(self, number: int, stage: Stage, verdict: Verdict) -> None:
        """End a trial that is not worth more training, all its stages recorded so far."""
        running = self._running.pop(number)
        self._rungs.stop(number, stage.rung)
        values = {name: measurement.value for name, measurement in running.measurements.items()}
        reason = stopped_text(stage, verdict, running.policy.recovery.epochs)
        told = [values[name] for name in self.spec.objectives]
        attributes = {"reason": reason, "rung": stage.rung, STOPPED_EPOCHS: stage.epochs, STOPPED_VALUES: told}
        self._optuna.annotate(number, {**values, **attributes})
        violations = {str(c): c.violation(values[c.metric]) for c in self.spec.constraints if c.metric in values}
        self._optuna.tell(number, None, {**violations, STOPPED: 1.0})
        self.store.finish_trial(self.spec.study, number, "infeasible", reason, violations)
        self._ended(self.store.get_trial(self.spec.study, number))
        self._listener("stopped", number, reason)

    @uninterrupted()
    def finish(self, number: int) -> None:
        """End a trial whose stages have all been recorded, unless it failed."""
        if number not in self._running:
            return
        running = self._running.pop(number)
        values = {name: measurement.value for name, measurement in running.measurements.items()}
        violations = {str(c): c.violation(values[c.metric]) for c in self.spec.constraints if c.metric in values}
        told = (
            [values[name] for name in self.spec.objectives]
            if all(name in values for name in self.spec.objectives)
            else None
        )
        broken = [name for name, violation in violations.items() if violation > 0]
        reason = f"violates {broken[0]}: {values[broken[0].split()[0]]:.4g}" if broken else ""
        self._optuna.annotate(number, {**values, "reason": reason} if broken else values)
        self._optuna.tell(number, told, violations)
        state: State = "infeasible" if broken else "complete"
        self.store.finish_trial(self.spec.study, number, state, reason or running.remark, violations)
        trial = self.store.get_trial(self.spec.study, number)
        self._ended(trial)
        self._listener(state, number, reason)
        if not broken:
            self._add_point(trial)

    @uninterrupted()
    def fail(self, number: int, reason: str) -> None:
        """End a trial that broke; it counts against the budget."""
        del self._running[number]
        self._optuna.fail(number, reason)
        self.store.finish_trial(self.spec.study, number, "failed", reason)
        self._ended(self.store.get_trial(self.spec.study, number))
        self._listener("failed", number, reason)

    @uninterrupted()
    def interrupt(self) -> None:
        """End every trial still running, wherever it was interrupted; the next run of the study tries their policies again."""
        for trial in self.store.running_trials(self.spec.study):
            self.store.finish_trial(self.spec.study, trial.number, "failed", INTERRUPTED)
            self._seen.pop(trial.digest, None)
        self._running.clear()
        self._optuna.abandon(INTERRUPTED)

    def worker_setup(self, workers: int) -> WorkerSetup:
        """What workers need; with `workers` > 0 they are kept off the bench's cores and share the others."""
        target = self.problem.target
        threads = len(cores_beside(target)) // workers if workers else self.problem.context.threads
        return WorkerSetup(
            workload=self.spec.workload,
            workload_options=self.spec.workload_options,
            base_folder=self.spec.base_folder,
            target=target,
            groups=self.problem.groups,
            seed=self.spec.seed,
            batch_size=self.spec.recovery.batch_size,
            constraints=self.spec.constraints,
            reference=self.reference,
            kept_off_bench=workers > 0,
            threads=max(1, threads),
            metrics=self.spec.metrics,
            rungs=self.spec.rungs,
        )

    # What reports ask

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent, counting trials that still run, and no stopped trial would go on now."""
        timeout = self.spec.budget.timeout_s
        if timeout is not None and time.monotonic() - self._started >= timeout:
            return True
        return self._is_spent and self._rungs.promoted() is None

    @property
    def _is_spent(self) -> bool:
        """Whether no new policy is to be tried: the budget of trials or patience is spent, or the space exhausted."""
        trials = self.spec.budget.trials
        spent = self._finished + len(self._running) + self.charged
        return (trials is not None and spent >= trials) or self._exhausted or self._converged

    @property
    def charged(self) -> int:
        """Trials of the budget that measuring the sensitivity stands for."""
        return charged_trials(self._sensitivities, self._durations, self.spec.workers)

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
        self.store.add_measurements(self.spec.study, number, measurements, rung, self.problem.target.name)
        self._add_point(self.store.get_trial(self.spec.study, number))

    # How it starts

    def _baseline(self) -> dict[str, float]:
        """What was measured of the uncompressed model."""
        return {name: m.value for name, m in self.store.get_study(self.spec.study).baseline.items()}

    def _sampler(self, trials_so_far: int) -> BaseSampler:
        earlier = earlier_trials(self.store, self.spec, self.problem.space) if self.spec.transfer else []
        return make_sampler(self.problem, self._baseline(), trials_so_far, earlier, self._known_damage(), self._untried)

    def _known_damage(self) -> dict[str, dict[Choice, float]]:
        return known_damage(self.problem.space, self._sensitivities)

    def _load_trials(self) -> None:
        """Take up what earlier runs left: finished trials, and orphans to try again."""
        self._exhausted = False
        self._points: dict[int, Point] = {}
        self._finished = 0
        self._durations: list[float] = []
        self._first: deque[tuple[Mapping[str, Choice], Mapping[str, object]]] = deque()
        self._is_new = self._optuna.is_new
        self.interrupt()  # what a driver that was killed left running
        trials = self.store.trials(self.spec.study)
        retried = {trial.retry_of for trial in trials}
        for trial in trials:
            if trial.reason != INTERRUPTED:
                self._ended(trial)
                self._rungs.resume(trial, self.store.measurement_history(self.spec.study, trial.number))
                self._seen[trial.digest] = trial.number
                if trial.state == "complete":
                    self._points[trial.number] = Point.of(trial, self.objectives)
            elif trial.number not in retried and self._rungs.passed(trial.retry_of) < 0:
                self._first.append((self.problem.space.parameters(trial.policy), {"retry_of": trial.number}))
        again = {trial.digest for trial in trials}
        self._first += [(self.problem.space.parameters(p), {}) for p in self._first_policies() if p.digest not in again]
        waiting = self._optuna.waiting()  # a driver that was killed had them enqueued: they are asked first
        self._first = deque(item for item in self._first if item[0] not in waiting)

    def _first_policies(self) -> list[Policy]:
        """The anchors, and the greedy path where single damages are known."""
        path = greedy_policies(self.problem, self._known_damage()) if self._sensitivities else []
        return list(dict.fromkeys([*self.problem.space.anchors()[:MAX_ANCHORS], *path]))

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
        source = self._recovered.of(policy)
        if source is None:
            return Proposal(number, policy, folder)
        running.remark = f"recovered weights of trial {source.trial}"
        self._optuna.annotate(number, {"recovered_weights_of": source.trial})
        return Proposal(number, policy, folder, source.path)

    def _ended(self, trial: TrialRecord) -> None:
        """Charge a trial to the budget, and keep what later ones may start from."""
        self._finished += self._rungs.passed(trial.retry_of) < 0  # who goes on after all was charged before
        self._recovered.offer(trial)
        if ran(trial):
            self._durations.append(trial.seconds)

    def _add_point(self, trial: TrialRecord) -> None:
        before = {point.trial for point in self.front}
        self._points[trial.number] = Point.of(trial, self.objectives)
        members = [point.trial for point in self.front]
        self.store.save_front(self.spec.study, members, self.hypervolume)
        if trial.number in members and trial.number not in before:
            self._listener("front", trial.number, "")
