"""The end of a search: the front scored on the test split by all slots, and what happens where that breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from slimfront.api.study import Study
from slimfront.core.errors import EvaluationError
from slimfront.core.interrupts import Interrupts
from slimfront.evaluators.accuracy import score
from slimfront.evaluators.scores import Scores
from slimfront.evaluators.tallies import Tallied
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.search.bookkeeping import MOST_RETRIES
from slimfront.search.confirmation import split_scoring
from slimfront.search.confirmation.confirm import confirm_front
from slimfront.search.confirmation.split_scoring import SplitScoring
from slimfront.search.driver import Search
from slimfront.search.execution.local import LocalRunner, run_local
from slimfront.search.trials.prepared_study import prepare
from slimfront.search.trials.worker import Stage
from slimfront.studies.files.sample_scores import sample_scores
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

SAMPLES, BATCH = 1000, 8


class Runner(LocalRunner):
    """One process that says it has three slots, and whose second trial cannot be scored on the second part of the split."""

    slots = 3

    def run(self, work: Any, interrupts: Interrupts) -> None:
        advance = work.advance

        def watched(number: int, stage: Stage) -> bool:
            running = work._running[number]
            self.ran.append((running.task.start, running.stages))
            if running.task.start and running.stages and running.left[0] == self.broken:
                stage = Stage("failed", reason="a segmentation fault")
            return advance(number, stage)

        work.advance = watched
        super().run(work, interrupts)


@pytest.mark.slow  # a search and its confirmation
@pytest.mark.usefixtures("short_timings")
def test_all_slots_score_the_front_and_one_that_breaks_costs_its_own_point_alone(
    tiny_spec: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_scoring, "FEWEST_SAMPLES", 10)
    spec = tiny_spec(objectives=["kl", "packed_bytes"], sensitivity=False)
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        search = Search(prepare(spec), store, tmp_path / "artifacts")
        run_local(search)
        first, *others = [point.trial for point in search.front]
        assert others, "a front of one point shows nothing"
        runner = Runner(search, isolated=False)
        runner.ran, runner.broken = [], first
        confirm_front(search, runner)
        runner.close()
        parts = {start for start, _ in runner.ran}
        assert len(parts) == 3
        assert store.get_trial("tiny", first).reason == (
            "not confirmed: cannot be scored on the test split: a segmentation fault"
        )
        for number in others:
            _is_confirmed(search, number)
        assert not (search.folder / "confirming").exists()
        confirm_front(search)  # the next run tries the first again, and only that
        _is_confirmed(search, first)
        assert store.get_trial("tiny", first).reason is None
        same = Study(store, "tiny").paired_drop(first, first)
        assert same is not None
        assert (same.value, same.low, same.high, same.method) == (0, 0, 0, "paired-normal")


def _is_confirmed(search: Search, number: int) -> None:
    """Whether a trial has figures of the test split, and those of each sample are the ones of scoring it in one piece."""
    trial, test = search.store.get_trial("tiny", number), search.prepared.context.workload.test
    history = search.store.measurement_history("tiny", number)
    assert [r.rung for r in history if r.measurement.name == "speedup"] == [0, 2]
    kept, reference = sample_scores(search.files, number), sample_scores(search.files, None)
    assert kept is not None
    assert reference is not None
    whole = score(Artifact.of(search.files.found(number, "model")), test, search.prepared.context)
    np.testing.assert_array_equal(kept.metric.hits, whole.metric.hits)
    assert kept.damage is not None
    assert len(kept.damage) == kept.n == len(test)
    assert trial.measurements["test_accuracy"].value == kept.value
    assert trial.measurements["test_accuracy_drop"].value == kept.drop_from(reference)[0]


def scoring(trials: int, slots: int, samples: int = SAMPLES, metric: object = "top1") -> SplitScoring:
    """The scoring of so many trials, for a study that is nothing but its test split."""
    workload = SimpleNamespace(test=range(samples), metric=metric)
    prepared = SimpleNamespace(context=SimpleNamespace(workload=workload), target=SimpleNamespace(batch=BATCH))
    budget = SimpleNamespace(trial_timeout_s=None, trial_memory_gb=None)
    search: Any = SimpleNamespace(
        prepared=prepared,
        spec=SimpleNamespace(budget=budget),
        tell=lambda _: None,
        kept=SimpleNamespace(put=lambda *_: 0),
    )
    return SplitScoring(search, {number: Path(f"{number}") for number in range(trials)}, slots, Path("nowhere"))


def stages(task: Any) -> Iterator[Stage]:
    """What a worker finds: the hits of trial n are the samples that n + 2 divides, the reference's all even ones."""
    for number in (0, *task.artifacts):
        hits = (np.arange(task.start, task.stop) % (number + 2) == 0).astype(float)
        yield Stage("confirmed", scores=Scores(len(hits), Tallied(float(hits.mean()), "wilson", hits)))


@pytest.mark.parametrize("slots", [1, 2, 5, 8, 64])
@pytest.mark.parametrize("trials", [1, 3, 10])
@pytest.mark.parametrize("samples", [5, 999, 50_000])
@pytest.mark.parametrize("metric", ["top1", "top5", len])
def test_every_sample_is_scored_once_for_every_trial_whatever_the_slots(
    slots: int, trials: int, samples: int, metric: object
) -> None:
    work, tasks = scoring(trials, slots, samples, metric), 0
    while task := work.propose():
        tasks += 1
        assert task.start % BATCH == 0
        assert all(work.advance(task.number, stage) for stage in stages(task))
        work.finish(task.number)
    expected = min(slots, trials) if metric is len or samples < 1000 else slots
    assert tasks >= expected
    for trial in range(trials):
        hits = work.of(trial).metric.hits
        np.testing.assert_array_equal(hits, np.arange(samples) % (trial + 2) == 0)
    assert work.reference.n == samples


def test_a_task_that_is_lost_goes_on_with_what_it_had_left_and_fails_its_artifact_in_the_end() -> None:
    work = scoring(trials=3, slots=1)
    task = work.propose()
    assert task is not None
    found = stages(task)
    work.advance(task.number, next(found))
    work.advance(task.number, next(found))  # the first trial is scored
    for _ in range(MOST_RETRIES + 1):
        work.lose(task.number, "its node is gone")
        task = work.propose()
        assert task is not None
        work.advance(task.number, next(stages(task)))
        assert 0 not in task.artifacts
    assert work.problems == {1: f"cannot be scored on the test split: its node is gone, {MOST_RETRIES + 1} times"}
    assert list(task.artifacts) == [2]


def test_where_the_uncompressed_model_cannot_be_scored_nothing_is_confirmed() -> None:
    work = scoring(trials=3, slots=2)
    task = work.propose()
    assert task is not None
    with pytest.raises(EvaluationError, match="the uncompressed model cannot be scored on the test split: it died"):
        work.advance(task.number, Stage("failed", reason="it died"))
