"""A driver that is killed between two writes, at every one of them: the next run completes what it had begun."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import optuna
import pytest
from rich.console import Console
from slimfront.core.errors import WorkerStartError
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.search import study_setup
from slimfront.search.bookkeeping import MOST_RETRIES
from slimfront.search.driver import Search
from slimfront.search.proposal import Proposal
from slimfront.search.run import run_search
from slimfront.search.trials.baseline import with_scores
from slimfront.search.trials.prepared_study import prepare
from slimfront.search.trials.worker import Stage
from slimfront.studies.files.trial_log import last_lines
from slimfront.studies.store.records import ORPHANED, ReferenceRecord
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from sqlalchemy import Connection, Engine, event

TINY = Path(__file__).with_name("tiny_workload.py")
SPACE = {"granularity": "model", "weight_bits": [4, 8, 32], "activation_bits": [8, 32]}
TOLD_AS = {
    "complete": ("COMPLETE",), "infeasible": ("COMPLETE", "PRUNED"), "failed": ("FAIL",), "interrupted": ("FAIL",),
}  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is written."""


@contextmanager
def killed_at(write: int) -> Iterator[list[int]]:
    """Kill the driver as it commits its `write`-th transaction, of Optuna's tables or ours, counted from 0."""
    commits: list[int] = []

    def count(connection: Connection) -> None:
        commits.append(len(commits))
        if len(commits) > write:
            connection.connection.rollback()  # as the database does when the process is gone
            raise Killed

    event.listen(Engine, "commit", count)
    try:
        yield commits
    finally:
        event.remove(Engine, "commit", count)


def scored(search: Search, proposal: Proposal) -> None:
    drop = 0.01 * proposal.number
    for name, value in (("accuracy_drop", drop), ("latency_ms", 1.0 / (1 + proposal.number)), ("kl", 0.1)):
        measurement = Measurement(name, value, value, value, METRICS[name].unit)
        search.record(proposal.number, Stage("scored", measurements=[measurement]))
    search.finish(proposal.number)


def agree(store: Store) -> None:
    """Both sets of tables tell the same, and no policy was finished twice."""
    in_optuna = {trial.number: trial for trial in optuna.load_study(study_name="tiny", storage=store.url).get_trials()}
    trials = store.trials("tiny")
    for trial in trials:
        assert in_optuna[trial.number].state.name in TOLD_AS[trial.state]
    assert {t.number for t in in_optuna.values() if t.state.name not in ("FAIL", "WAITING")} == {
        trial.number for trial in trials if trial.state.has_result
    }
    done = [trial.digest for trial in trials if trial.state == "complete"]
    assert len(done) == len(set(done))


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
@pytest.mark.parametrize("constraints", [[], ["accuracy_drop <= 0.005"]], ids=["complete", "infeasible"])
def test_a_driver_may_be_killed_at_any_write(
    constraints: list[str], tiny_spec: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is scored once, and not timed again by every driver: neither is between the writes in question."""
    once = cache(lambda: with_scores(prepared.context, Artifact.of(path), 1.0, ReferenceRecord("float32", "", "")))
    monkeypatch.setattr(study_setup, "with_scores", lambda context, **_: once())
    monkeypatch.setattr(study_setup, "quiet_moment", lambda prepared, store, reference, bench, tell: reference)
    path = tmp_path / "artifacts" / "tiny" / "reference" / "model.onnx"
    prepared = prepare(tiny_spec(space=SPACE, sampler="random", budget={"trials": 3}, constraints=constraints))
    database, copy = tmp_path / "new.db", tmp_path / "killed.db"
    with Store(f"sqlite:///{database}") as store:
        search = Search(prepared, store, tmp_path / "artifacts")
        scored(search, search.propose())
    write = 0
    while True:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)  # with what its write-ahead log holds
        with Store(f"sqlite:///{copy}") as store:
            search = Search(prepared, store, tmp_path / "artifacts")
            try:
                with killed_at(write) as commits:
                    scored(search, search.propose())
            except Killed:
                pass
            else:
                break  # the trial has fewer writes
            search = Search(prepared, store, tmp_path / "artifacts")
            agree(store)
            while proposal := search.propose():
                scored(search, proposal)
            agree(store)
            ended = [trial for trial in store.trials("tiny") if trial.state.has_result]
            assert len(ended) == 3
            assert store.current_front("tiny").members == tuple(sorted(point.trial for point in search.front))
        for file in tmp_path.glob("killed.db*"):
            file.unlink()
        write += 1
    assert write == len(commits) >= 9


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_policy_that_kills_its_driver_is_tried_again_twice(
    tiny_spec: Callable[..., StudySpec], tmp_path: Path
) -> None:
    prepared = prepare(tiny_spec(space=SPACE, sampler="random", budget={"trials": 4}))
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        scored(*(lambda search: (search, search.propose()))(Search(prepared, store, tmp_path / "artifacts")))
        deadly = None
        for _ in range(MOST_RETRIES + 1):
            proposal = Search(prepared, store, tmp_path / "artifacts").propose()
            deadly = deadly or proposal.policy
            assert proposal.policy == deadly
        search = Search(prepared, store, tmp_path / "artifacts")
        assert search.propose().policy != deadly
        search.interrupt()
        reasons = [trial.reason for trial in store.trials("tiny") if trial.policy == deadly]
        assert reasons == [ORPHANED] * MOST_RETRIES + ["the search's process died 3 times while this policy ran"]
        agree(store)


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_what_failed_before_the_first_result_is_tried_again_and_free(
    tiny_spec: Callable[..., StudySpec], tmp_path: Path
) -> None:
    prepared = prepare(tiny_spec(space=SPACE, sampler="random", budget={"trials": 4}))
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        search = Search(prepared, store, tmp_path / "artifacts")
        failed = []
        while proposal := search.propose():
            failed.append(proposal.policy)
            search.fail(proposal.number, "FileNotFoundError: model.pt")
        assert len(failed) == 4
        search = Search(prepared, store, tmp_path / "artifacts")  # and now the file is there
        again = []
        while proposal := search.propose():
            again.append(proposal.policy)
            scored(search, proposal)
        assert again == failed
        assert search.finished == 4


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_search_whose_workload_is_broken_in_workers_stops_after_one_trial_and_says_why(
    tiny_spec: Callable[..., StudySpec], tmp_path: Path
) -> None:
    """The loss raises, and every policy of the space is recovered; the workload's folder is where its code runs."""
    workload = tmp_path / "broken.py"
    workload.write_text(
        "from pathlib import Path\n"
        "from slimfront.workloads.load import load_workload\n"
        "assert Path('study.yaml').is_file()\n"
        f"def workload():\n    return load_workload({str(TINY)!r} + ':workload', {{'broken_loss': True}})\n"
    )
    space = {"channel_sparsity": [0, 0.25, 0.5, 0.75], "recovery_epochs": [1, 2, 3]}
    spec = tiny_spec(workload="broken.py:workload", space=space, budget={"trials": 40})
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(
        WorkerStartError,
        match=r"no worker can run trials: the uncompressed model fails there too: ZeroDivisionError: no such luck; what it printed is in .*trial\.log",
    ):
        run_search(spec, url, tmp_path / "artifacts", Console(quiet=True))
    with Store(url) as store:
        (failed,) = (trial for trial in store.trials("tiny") if trial.state != "interrupted")
        assert failed.state == "failed"
        log = last_lines(store, "tiny", failed.number)
        assert log[-1] == "ZeroDivisionError: no such luck"
        assert any("tiny_workload.py" in line for line in log)
