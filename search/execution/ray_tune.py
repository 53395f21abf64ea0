"""Runs a search over Ray Tune: long-lived workers take trials one stage at a time; the driver alone writes."""

# `tune.with_parameters` adds arguments to `setup`, and a searcher that is done suggests a string.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..cluster.cluster import LOG, connect, ray  # before anything else of Ray

from ray import tune  # isort: skip
from ray.tune.schedulers import FIFOScheduler  # isort: skip
from ray.tune.search import Searcher  # isort: skip

from ...core.errors import describe_exception
from ...core.interrupts import Interrupts, ignore_interrupts
from ...core.texts import one_line
from ...workloads.load import settle_in
from ..driver import Search
from ..proposals import Proposal
from ..trials.worker import Stage, Worker, WorkerSetup
from .base import raise_fault, worker_setup
from .crash_report import crash_reported, stage_of_death
from .resources import worker_resources
from .worker_process import STARTS

Result = TypeVar("Result")


class WorkerSlot(tune.Trainable):
    """A slot for a worker: one `step` is one stage of a trial; the same process takes the next trial."""

    def setup(self, config: dict[str, Any], setup: WorkerSetup) -> None:
        ignore_interrupts()  # Ctrl-C is the driver's to handle
        self._setup, self._worker = setup, None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        began = time.monotonic()
        with crash_reported(self._proposal.folder, self._left):
            stage = next(self._stages, None)
        if self._left is not None:
            self._left -= time.monotonic() - began
        return {"stage": stage, "done": stage is None}

    def cleanup(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def _begin(self, config: dict[str, Any]) -> None:
        proposal: Proposal = config["proposal"]
        self._proposal, self._left = proposal, proposal.limit_s
        self._stages = self._started(proposal)

    def _started(self, proposal: Proposal) -> Iterator[Stage]:
        """The trial's stages; a "failed" one where no worker can start: Ray would reword what setup raises."""
        try:
            self._worker = self._worker or _worker(self._setup)
        except BaseException as error:  # the user's code may raise anything
            return iter([Stage("failed", reason=describe_exception(error), fault="start")])
        return self._worker.run(proposal.policy, proposal.folder, proposal.recovered)


def _worker(setup: WorkerSetup) -> Worker:
    settle_in(setup.base_folder)  # Ray starts its processes in a folder of its own
    worker = Worker(setup)
    worker.warm_up()
    return worker


class StageScheduler(FIFOScheduler):
    """Hands each stage to the driver as it arrives, and stops the trials that the driver does not continue.

    Tune asks its scheduler first, and its searcher only if the trial continues. As stages are stored and judged in one place, the
    order is that of local execution. No trial is paused: its training stays in its worker and continues there.
    """

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass on why a worker died before Tune reports the trial's end to the searcher."""
        self._searcher.deaths[trial.trial_id] = _how_it_died(Path(trial.error_file or ""))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stage: Stage | None = result["stage"]
        goes_on = stage is None or self._searcher.take(trial.trial_id, stage)
        return self.CONTINUE if goes_on else self.STOP

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles schedulers for checkpoints of its own; here the database is the truth."""
        return {}


class StudySearcher(Searcher):
    """Hands the driver's proposals to Tune, and Tune's results to the driver.

    Attributes:
        deaths: Tune's trial -> how the worker that ran it died.
        fault: the stage after which no trial would fare better, once there is one.
        failure: what the driver raised, which ends the run; Tune would take it for a failure of the trial.
    """

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.deaths: dict[str, str] = {}
        self.fault: Stage | None = None
        self.failure: Exception | None = None
        self._search = search
        self._proposals: dict[str, Proposal] = {}
        self._again: deque[Proposal] = deque()
        self._failed_starts = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self.has_ended:
            return Searcher.FINISHED
        proposal = self._again.popleft() if self._again else self._drive(self._search.propose, None)
        if proposal is None:
            return Searcher.FINISHED
        self._proposals[trial_id] = proposal
        return {"proposal": proposal}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (proposal := self._proposals.get(trial_id)) is None:  # at fault
            return
        if error:
            limit = self._search.spec.budget.trial_timeout_s
            self.take(trial_id, stage_of_death(proposal, limit, self.deaths.pop(trial_id, "died")))
        elif result is not None and result.get("done"):
            self._drive(lambda: self._search.finish(proposal.number), None)
        self._proposals.pop(trial_id, None)

    @property
    def has_ended(self) -> bool:
        """Whether no other trial is to be run."""
        return self.fault is not None or self.failure is not None

    def _drive(self, call: Callable[[], Result], otherwise: Result) -> Result:
        """What the driver answers; `otherwise` from its first failure on."""
        if self.failure is not None:
            return otherwise
        try:
            return call()
        except Exception as error:  # raised again where Tune has ended
            self.failure = error
            return otherwise

    def take(self, trial_id: str, stage: Stage) -> bool:
        """Whether a trial goes on after a stage; one at fault is left to another worker or to the study's next run."""
        if stage.fault is None:
            self._failed_starts = 0
            number = self._proposals[trial_id].number
            return self._drive(lambda: self._search.advance(number, stage), True)
        proposal = self._proposals.pop(trial_id)
        if stage.fault == "start":
            self._failed_starts += 1
            self._again.append(proposal)
        if stage.fault == "storage" or self._failed_starts >= STARTS:
            self.fault = stage
        return True  # it has no other stage

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles searchers for checkpoints of its own; here the database is the truth."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as for `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for `__getstate__`."""


class EarlyEnd(tune.Stopper):
    """Ends the run where no trial would fare better than the last, or an interrupt was lost in a library."""

    def __init__(self, searcher: StudySearcher, interrupts: Interrupts) -> None:
        self._searcher, self._interrupts = searcher, interrupts

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._searcher.has_ended or self._interrupts.received

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for a scheduler."""
        return {}


def _how_it_died(error_file: Path) -> str:
    """What Ray knows of a worker's death, in its own words without those on actors and their ids."""
    text = error_file.read_text(encoding="utf-8", errors="replace") if error_file.is_file() else ""
    detail = next((line for line in text.splitlines() if "exit detail" in line), "Ray knows no more")
    return f"died: {one_line(detail, 400)}"


class RayRunner:
    """Runs trials on Ray actors, of the cluster that RAY_ADDRESS names or of this machine, where Ray is started then."""

    def __init__(self, search: Search, workers: int) -> None:
        self._searcher, self._workers = StudySearcher(search), workers

    def run(self, search: Search, interrupts: Interrupts) -> None:
        """As `Runner.run`."""
        connect(self._workers, search.folder / LOG)
        _tune(search, self._searcher, self._workers, interrupts)
        if self._searcher.failure is not None:
            raise self._searcher.failure
        if self._searcher.fault is not None:
            raise_fault(self._searcher.fault)
        if not search.is_over:  # Tune takes an interrupt for the end of the run
            raise KeyboardInterrupt

    def close(self) -> None:
        """Leave the cluster; end it, if it was started here."""
        ray.shutdown()


def _tune(search: Search, searcher: StudySearcher, workers: int, interrupts: Interrupts) -> None:
    with tempfile.TemporaryDirectory(prefix="slimfront-tune-") as folder:
        trainable = tune.with_parameters(WorkerSlot, setup=worker_setup(search, workers))
        tune.Tuner(
            tune.with_resources(
                trainable, worker_resources(search.spec.compute, ray.cluster_resources().get("GPU", 0))
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StageScheduler(searcher),
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="tune",
                verbose=0,
                stop=EarlyEnd(searcher, interrupts),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
