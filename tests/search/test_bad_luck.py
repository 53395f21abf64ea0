"""Whatever a trial does to its process, its search goes on; what no trial can help ends it in one line."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from loky.backend import get_context
from rich.console import Console
from slimfront.core.errors import ArtifactsError, SearchError, UserError, WorkerStartError, WorkloadError
from slimfront.search import run as run_module
from slimfront.search.driver import Search
from slimfront.search.execution import worker_process
from slimfront.search.execution.base import run_trials, worker_setup
from slimfront.search.execution.crash_report import CrashReport, exit_text, stage_of_death
from slimfront.search.execution.local import measuring_process, run_local
from slimfront.search.execution.worker_child import serve, start_limit_s
from slimfront.search.execution.worker_process import WorkerProcess
from slimfront.search.proposal import Proposal
from slimfront.search.run import run_search
from slimfront.search.trials import prepared_study
from slimfront.search.trials.artifacts_folder import require_writable, storage_problem, storing
from slimfront.search.trials.baseline import lower_reference, measuring_here, with_scores
from slimfront.search.trials.prepared_study import prepare
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.files.trial_log import last_lines
from slimfront.studies.store.records import INTERRUPTED, ORPHANED, ReferenceRecord
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

HERE = Path(__file__).parent
UNLUCKY = HERE / "unlucky_workload.py"
LIMIT = 12
SPACE = {"weight_bits": [4, 8, 32], "activation_bits": [8, 32], "channel_sparsity": [0, 0.5]}

Spec = Callable[..., StudySpec]
Luck = Callable[..., StudySpec]


@pytest.fixture
def luck(tiny_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Luck:
    """A study each of whose first trials has the luck that is named; the rest have none."""
    folder = tmp_path / "luck"
    folder.mkdir()
    monkeypatch.setenv("UNLUCKY", str(folder))
    monkeypatch.setenv("UNLUCKY_DRIVER", str(os.getpid()))

    def study(*names: str, workers: int = 0, trials: int = 0, limit_s: float | None = LIMIT) -> StudySpec:
        for number, name in enumerate(names):
            (folder / f"{number:02d}-{name}").touch()
        budget = {"trials": trials or len(names) + 2, "trial_timeout_s": limit_s, "trial_memory_gb": 2}
        return tiny_spec(workload=f"{UNLUCKY}:workload", workers=workers, budget=budget, sensitivity=False)

    return study


@pytest.fixture
def store(tmp_path: Path):
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as opened:
        yield opened


def run(spec: StudySpec, store: Store, tmp_path: Path) -> Search:
    search = Search(prepare(spec), store, tmp_path / "artifacts")
    if spec.workers:
        from slimfront.search.execution.ray_runner import RayRunner

        run_trials(search, RayRunner(search, spec.workers))
    else:
        run_local(search, isolated=True)
    return search


def ends(store: Store) -> list[str]:
    return [trial.reason or trial.state for trial in store.trials("tiny")]


REASONS = {
    "exit": "SystemExit: 0",
    "generator_exit": "GeneratorExit: all of a sudden",
    "interrupt": "KeyboardInterrupt: nobody pressed anything",
    "whim": "Whim: why not",
    "text": r"ValueError: half \\udc80 nul \\x00 bell \\x07 yyy",
    "vanish": "the trial's process (ended with exit code 0; does its code call os._exit|died: )",
    "crash": r"the trial's process .*Segmentation fault \(in unlucky_workload.py:\d+ ",
    "greed": r"took more memory than trial_memory_gb allows: [2-9]\S* GB of 2 GB \(in unlucky_workload.py:\d+ ",
    "hang_in_c": rf"took longer than trial_timeout_s = {LIMIT} s \(in unlucky_workload.py:\d+ ",
}
"""Luck -> what the reason of its trial begins with."""


def test_what_ends_the_process_that_measures_the_reference_is_one_line(luck: Luck, tmp_path: Path) -> None:
    prepared = prepare(luck("crash", "whim", "stall"))
    artifact = lower_reference(prepared.context, tmp_path / "reference")
    score = partial(with_scores, artifact=artifact, latency_ms=1.0, record=ReferenceRecord("float32", "", ""))
    with closing(measuring_process(prepared, tmp_path)) as process:
        begin = "the uncompressed model cannot be measured: "
        died = r"the measurement's process was killed by SIGSEGV: Segmentation fault \(in unlucky_workload.py:\d+ .*trial.log"
        with pytest.raises(SearchError, match=begin + died):
            process.measured(score, folder=tmp_path / "first")
        assert "unlucky_workload.py" in (tmp_path / "first" / "trial.log").read_text()
        with pytest.raises(
            WorkloadError, match=rf"{begin}Whim: why not; its traceback is in {tmp_path}/second/trial.log"
        ):
            process.measured(score, folder=tmp_path / "second")
        assert "unlucky_workload.py" in (tmp_path / "second" / "trial.log").read_text()
        found = process.measured(score, folder=tmp_path / "third")  # in the process of the second
        process._trial_timeout_s = 0.1
        lower = partial(lower_reference, folder=tmp_path / "never")
        late = rf"{begin}TimeLimitError: took longer than 5 x trial_timeout_s = 0.5 s \(in unlucky_workload.py:\d+ .*fourth"
        with pytest.raises(WorkloadError, match=late):
            process.measured(lower, folder=tmp_path / "fourth")
    assert found.validation.value == measuring_here(prepared.context)(score).validation.value


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
@pytest.mark.parametrize(("workers", "names"), [(0, list(REASONS)), (1, ["exit", "crash"])])
def test_whatever_a_trial_does_to_its_process_the_others_are_done(
    workers: int, names: list[str], luck: Luck, store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("slimfront.search.budget.FIRST_FAILURES", len(names) + 1)  # here all begin with failures
    run(luck(*names, workers=workers), store, tmp_path)
    first, *others = ends(store)
    unlucky, left = others[: len(names)], others[len(names) :]
    assert {first, *left} == {"complete"}
    for name, reason in zip(names, unlucky, strict=True):
        assert re.match(REASONS[name], reason), (name, reason)
        assert len(reason) <= 2000
        log = "\n".join(last_lines(store, "tiny", 1 + names.index(name)))
        assert "unlucky_workload.py" in log or name == "vanish", name
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_runtime_that_refuses_a_choice_ends_no_search_though_the_first_trials_fail(
    luck: Luck, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice that the runtime refuses, in workers alone: the uncompressed model shows there that the set-up works."""
    monkeypatch.setenv("UNLUCKY_BITS", "8")
    spec = luck(trials=5)
    run(spec.model_copy(update={"space": spec.space.model_copy(update={"weight_bits": (8, 32)})}), store, tmp_path)
    uncompressed, first, *others = ends(store)
    assert (uncompressed, first) == ("complete", "RuntimeError: no kernel for 8 bits")
    assert "complete" in others


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
@pytest.mark.parametrize("workers", [0, 1])
def test_where_no_worker_starts_the_search_ends_after_three_tries(
    workers: int, luck: Luck, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLUCKY_START", "raise")
    with pytest.raises(WorkerStartError, match="RuntimeError: no such device"):
        run(luck(workers=workers, trials=6), store, tmp_path)
    assert ends(store) == ["complete", *([] if workers else [INTERRUPTED])]  # tried again, and costs nothing


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_ends_the_search_and_no_policy_is_at_fault(
    workers: int, luck: Luck, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(
        ArtifactsError, match="artifacts/tiny: artifacts cannot be written here: No space left on device"
    ):
        run(luck("full", workers=workers, trials=6), store, tmp_path)
    assert ends(store) == ["complete", INTERRUPTED]


@pytest.mark.slow
def test_a_signal_ends_a_hanging_search_within_seconds(luck: Luck, tmp_path: Path) -> None:
    """SIGTERM, which is what Ctrl-C is from there on; see test_interrupts.py."""
    luck("none", "hang", limit_s=None)  # the first is that of the process that measures the uncompressed model
    command = [sys.executable, "-m", "slimfront", "search", "study.yaml", "--storage", "sqlite:///study.db"]
    script = "import os, signal; os.environ['UNLUCKY_DRIVER'] = str(os.getpid()); "
    script += "signal.signal(signal.SIGINT, signal.default_int_handler); "
    script += f"import sys; sys.argv = {command[2:]!r}; from slimfront.cli import main; main()"
    search = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while (tmp_path / "luck" / "01-hang").exists():
        assert search.poll() is None
        time.sleep(0.2)
    search.send_signal(signal.SIGTERM)
    _, said = search.communicate(timeout=30)
    assert search.returncode == 130
    assert "Traceback" not in said
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        assert ends(store) == ["complete", INTERRUPTED]


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_policy_that_takes_the_search_down_is_retried_twice(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    prepared = prepare(tiny_spec(budget={"trials": 3}))
    for _ in range(3):  # drivers that are never heard of again
        first = Search(prepared, store, tmp_path / "artifacts").propose()
    assert first is not None
    last = Search(prepared, store, tmp_path / "artifacts")
    assert [trial.reason for trial in store.trials("tiny")] == [
        ORPHANED, ORPHANED, "the search's process died 3 times while this policy ran",
    ]  # fmt: skip
    assert [(trial.state, trial.driver_died) for trial in store.trials("tiny")] == [
        ("interrupted", True), ("interrupted", True), ("failed", False),
    ]  # fmt: skip
    assert last.finished == 0  # what failed before the first result is free
    another = last.propose()
    assert another is not None
    assert another.policy != first.policy
    for _ in range(2):  # a node that dies costs its trial's policy nothing, twice
        last.lose(another.number, "its node is gone")
        again = last.propose()
        assert again is not None
        assert (again.policy, store.trials("tiny")[-1].retry_of) == (another.policy, another.number)
        another = again
    last.lose(another.number, "its node is gone")
    assert store.trials("tiny")[-1].state == "failed"
    assert store.trials("tiny")[-1].reason == "its node is gone, as were those of 2 tries before"


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_trial_that_the_searchs_own_time_cuts_short_is_tried_again(
    luck: Luck, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(prepare(luck("hang", trials=2)), store, tmp_path / "artifacts")
    search.try_uncompressed()
    proposal = search.propose()
    assert proposal is not None
    process = WorkerProcess(worker_setup(search, 0), tmp_path / "log", LIMIT)
    cut_short = Proposal(proposal.number, proposal.policy, proposal.folder, limit_s=LIMIT - 5)
    try:
        last = list(process.run(cut_short))[-1]
    finally:
        process.close()
    assert (last.name, last.fault) == ("failed", "time")


def test_a_worker_whose_driver_was_killed_before_it_began_ends(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    context = get_context("loky")
    ours, theirs = context.Pipe()
    worker = context.Process(target=serve, args=(theirs, tmp_path / "log", gone.pid))
    worker.start()  # and waits for what to work on, which never comes
    worker.join(60)
    assert worker.exitcode == 1
    ours.close()


def test_a_crash_report_names_the_users_own_line(tmp_path: Path) -> None:
    script = tmp_path / "task.py"
    script.write_text(
        "import ctypes, sys\nfrom pathlib import Path\nfrom slimfront.search.execution.crash_report import crash_reported\n"
        "def metric():\n    ctypes.PyDLL(None).sleep(60)\n"
        "with crash_reported(Path(sys.argv[1]), 0.2):\n    metric()\n"
    )
    ended = subprocess.run([sys.executable, str(script), str(tmp_path)], check=False, timeout=120)
    assert ended.returncode == 1
    assert CrashReport.of(tmp_path) == CrashReport(None, " (in task.py:5 metric)")
    proposal = Proposal(1, Policy(), tmp_path, limit_s=0.2)
    assert (
        stage_of_death(proposal, 0.2, "died").reason == "took longer than trial_timeout_s = 0.2 s (in task.py:5 metric)"
    )
    assert stage_of_death(proposal, 5, "died").fault == "time"


def test_a_process_that_takes_too_much_memory_says_how_much_and_where(tmp_path: Path) -> None:
    script = tmp_path / "task.py"
    script.write_text(
        "import sys, time\nimport numpy, psutil\nfrom pathlib import Path\n"
        "from slimfront.search.execution.crash_report import crash_reported\n"
        "from slimfront.search.execution.memory_limit import GB, memory_bytes\n"
        "def metric():\n    held = numpy.ones(3 * 10**8, numpy.uint8)\n    time.sleep(60)\n"
        "with crash_reported(Path(sys.argv[1]), None, memory_bytes(psutil.Process()) / GB + 0.2):\n    metric()\n"
    )
    ended = subprocess.run([sys.executable, str(script), str(tmp_path)], check=False, timeout=120)
    assert ended.returncode == 1
    died = stage_of_death(Proposal(1, Policy(), tmp_path), None, "ended with exit code 1", was_killed=False)
    assert re.fullmatch(
        r"took more memory than trial_memory_gb allows: [\d.]+ GB of [\d.]+ GB \(in task.py:[78] metric\)", died.reason
    )
    assert died.fault is None
    assert "task.py" in (tmp_path / "trial.log").read_text()


def test_a_process_that_something_else_killed_has_its_trial_tried_again(tmp_path: Path) -> None:
    died = stage_of_death(Proposal(1, Policy(), tmp_path), 5, exit_text(-signal.SIGKILL), was_killed=True)
    assert (died.fault, died.reason) == ("lost", "the trial's process was killed by SIGKILL; was memory short?")


def test_an_exit_is_known_by_its_code_or_signal() -> None:
    assert exit_text(3) == "ended with exit code 3; does its code call os._exit?"
    assert exit_text(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert exit_text(-signal.SIGKILL) == "was killed by SIGKILL; was memory short?"


def test_an_artifacts_folder_is_tried_before_anything_is_measured(tmp_path: Path) -> None:
    assert require_writable(f"{tmp_path}/new", "study") == tmp_path / "new" / "study"
    assert list((tmp_path / "new" / "study").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(
        ArtifactsError, match=f"{tmp_path}/file/study: artifacts cannot be written here: Not a directory"
    ):
        require_writable(f"{tmp_path}/file", "study")


def test_what_a_library_makes_of_a_full_disk_is_seen_through(tmp_path: Path) -> None:
    assert storage_problem(tmp_path, RuntimeError("I/O error: No space left on device (os error 28)"))
    assert storage_problem(tmp_path, ValueError("the policy is bad")) is None
    (tmp_path / "file").touch()
    assert storage_problem(tmp_path / "file" / "trial", RuntimeError("cannot open")) == "Not a directory"
    with pytest.raises(ArtifactsError), storing(tmp_path):
        Path("/dev/full").write_text("x", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), storing(tmp_path):
        raise ZeroDivisionError


def test_a_ray_that_cannot_start_here_is_known_before_anything_is_measured(
    luck: Luck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimfront.search.execution import ray_runner

    def refuse(*_: object) -> None:
        raise UserError("Ray cannot be started or joined: no port is free")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_runner, "connect", refuse)
    with pytest.raises(UserError, match="no port is free"):
        run_search(luck(workers=1), f"sqlite:///{tmp_path}/study.db", tmp_path / "artifacts", Console(quiet=True))
    assert not (tmp_path / "study.db").exists()


def test_a_workload_that_hangs_as_it_is_loaded_ends_the_search_and_says_where(
    luck: Luck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "start_limit_s", lambda _: 0.5)
    monkeypatch.setattr(prepared_study, "loaded_workload", lambda *_, **__: time.sleep(100))
    with pytest.raises(SearchError, match=r"^loading the workload took longer than .* = 0.5 s \(in test_bad_luck.py:"):
        run_search(luck(), f"sqlite:///{tmp_path}/study.db", tmp_path / "artifacts", Console(quiet=True))


def test_a_search_looks_for_garbage_among_what_it_makes_itself() -> None:
    frozen = gc.get_freeze_count
    before = frozen()
    with run_module._modules_kept():
        assert frozen() == before > 0  # the tests' own, which are left alone
    gc.unfreeze()
    with run_module._modules_kept():
        assert frozen() > 10_000
    assert frozen() == 0
    gc.freeze()


def test_a_worker_that_hangs_at_its_start_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (start_limit_s(None), start_limit_s(1), start_limit_s(1000)) == (None, 600, 5000)
    monkeypatch.setattr(worker_process, "start_limit_s", lambda _: 0.1)
    monkeypatch.setattr(worker_process, "KILL_DELAY_S", 0.1)
    monkeypatch.setattr(worker_process, "serve", lambda *_: time.sleep(100))
    process = WorkerProcess(None, tmp_path / "workers.log", 1)  # pyright: ignore[reportArgumentType]
    said = r"after 3 tries: its start took longer than .* = 0.1 s; what it"
    with closing(process), pytest.raises(WorkerStartError, match=said):
        next(process.run(Proposal(1, Policy(), tmp_path)))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379"])
def test_a_ray_address_that_nobody_answers_is_one_line_in_seconds(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimfront.search.cluster.cluster import require_answer

    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: nobody answers there"):
        require_answer()
    assert time.monotonic() - began < 15
