"""Runs a search over Ray Tune: long-lived workers take trials one stage at a time; the driver alone writes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from .cluster import connect, ray  # before anything else of Ray

from ray import tune  # isort: skip
from ray.tune.schedulers import FIFOScheduler  # isort: skip
from ray.tune.search import Searcher  # isort: skip

from .driver import Proposal, Search
from .worker import Stage, Worker, WorkerSetup


class TrialRunner(tune.Trainable):
    """A worker slot: one `step` is one stage of a trial; the same process takes the next trial."""

    def setup(self, config: dict[str, Any], setup: WorkerSetup) -> None:
        self._worker = Worker(setup)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        stage = next(self._stages, None)
        return {"stage": stage, "done": stage is None}

    def cleanup(self) -> None:
        self._worker.close()

    def _begin(self, config: dict[str, Any]) -> None:
        proposal: Proposal = config["proposal"]
        self._stages: Iterator[Stage] = self._worker.run(proposal.policy, proposal.folder, proposal.recovered)


class RungScheduler(FIFOScheduler):
    """Stops a trial of Tune's where the driver's successive halving says that more training is not worth it.

    No trial is ever paused: the state of its training stays in its worker, and goes on from there.
    """

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stage: Stage | None = result["stage"]
        if stage is None or stage.reason is not None:
            return self.CONTINUE
        number = trial.config["proposal"].number
        verdict = self._search.verdict(number, stage)
        if verdict is None or verdict.is_promising:
            return self.CONTINUE
        self._search.record(number, stage)  # the searcher is not told of results that stop a trial
        self._search.stop(number, stage, verdict)
        return self.STOP

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles schedulers for checkpoints of its own; here the database is the truth."""
        return {}


class StudySearcher(Searcher):
    """Hands the driver's proposals to Tune, and Tune's results to the driver."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        proposal = self._search.propose()
        if proposal is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = proposal.number
        return {"proposal": proposal}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if (stage := result["stage"]) is not None:
            self._search.record(self._numbers[trial_id], stage)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers.pop(trial_id)
        if error:
            self._search.fail(number, "its worker died")
        elif result is not None and result.get("done"):
            self._search.finish(number)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles searchers for checkpoints of its own; here the database is the truth."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as for `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for `__getstate__`."""


def run_distributed(search: Search, workers: int) -> None:
    """Run trials on `workers` Ray actors until the budget is spent.

    Joins the cluster RAY_ADDRESS names, else starts Ray on this machine. An interrupt ends the run; trials still running
    are closed as interrupted.

    Raises:
        KeyboardInterrupt: after the first Ctrl-C, when everything is stored.
    """
    try:
        search.try_uncompressed()
        connect(workers)
        with tempfile.TemporaryDirectory(prefix="slimfront-tune-") as folder:
            trainable = tune.with_parameters(TrialRunner, setup=search.worker_setup(workers))
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1}),
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(search),
                    scheduler=RungScheduler(search),
                    num_samples=-1,
                    max_concurrent_trials=workers,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=folder,
                    name="tune",
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()
    finally:
        interrupted = not search.is_over
        search.interrupt()
        ray.shutdown()
    if interrupted:
        raise KeyboardInterrupt
