"""A search from its spec to its confirmed front, with progress on the console."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from ..compression.recovery.stored_teacher import most_bytes
from ..core.errors import SearchError, TimeLimitError
from ..core.interrupts import ending_interrupts
from ..core.machine.memory import tidy
from ..core.time_limit import time_limited
from ..hardware_profiles.profiling.fingerprint import saturates
from ..studies.analysis.verdict import verdict
from ..studies.files.study_files import REFERENCE
from ..studies.inspection.limits import limits_on, limits_text
from ..studies.reports.progress import reason_rows, states_text
from ..studies.store.database import absolute_url
from ..studies.store.store import Store
from ..studies.study_file.spec import StudySpec
from ..workloads.load import working_in
from ..workloads.workload import Workload
from .confirmation.confirm import confirm_front
from .dashboard.publish import Publisher
from .driver import Search
from .events import Event, Listener, Preparing
from .execution.base import Runner, try_trials
from .execution.local import LocalRunner, measuring_process
from .execution.worker_child import SLOW_START, start_limit_s
from .execution.worker_process import WorkerProcess
from .sole_driver import sole_driver
from .terminal import SearchProgress
from .trials.artifacts_folder import artifacts_root, require_writable
from .trials.prepared_study import PreparedStudy, prepare


@ending_interrupts()
def run_search(
    spec: StudySpec,
    storage: str,
    artifacts: Path | str | None,
    console: Console,
    started: float | None = None,
    given: Workload | None = None,
    listeners: Sequence[Listener] = (),
) -> None:
    """Run or continue the study, confirm its front, and publish it to the dashboard.

    Meanwhile the current folder is the study file's, as it is in workers: relative paths in the workload's code start there.

    Args:
        artifacts: folder or URL that files of trials are kept in; None leaves it to the study file, to where the study has its
            files by now, or to the folder for all that name none.
        started: `time.monotonic()` when the user gave the command, which the budget of time is counted from; now by default.
        given: the workload, where it is an object of this program.
        listeners: hear of every event of the search, after the screen.

    Raises:
        UserError: bad input; nothing was written where it was found before the study began.
        SearchError: the search could not go on, or found nothing but the uncompressed model.
        KeyboardInterrupt: Ctrl-C; finished trials are stored.
    """
    started = time.monotonic() if started is None else started
    url = absolute_url(storage)
    root = artifacts_root(spec, artifacts, url)
    hearing: list[Listener] = [_tidy, *listeners]
    folder = require_writable(root, spec.study)
    with (
        _modules_kept(),
        working_in(spec.base_folder),
        SearchProgress(spec, console, started) as progress,
        _cluster_joined(spec, folder),
    ):
        hearing.insert(0, progress.hear)
        prepared = _prepared(spec, given, hearing)
        _remark(prepared, progress)
        _start_ray(prepared, folder, hearing)
        with (
            Store(url) as store,
            sole_driver(store, spec.study),
            closing(measuring_process(prepared, folder)) as process,
        ):
            store.patience.begin(lambda line: progress.say(line, "yellow"))
            measuring = partial(process.measured, folder=folder / REFERENCE, memory_gb=spec.budget.trial_memory_gb)
            search = Search(prepared, store, root, hearing, started, measuring)
            _describe(search.prepared, progress)
            progress.say(_disk_needed(search), "dim")
            _run(search, progress, process)


def _disk_needed(search: Search) -> str:
    spec = search.spec
    teacher_bytes = most_bytes(search.prepared.context.workload, spec.recovery.settings())
    return search.budget.disk.forecast(spec.keep, spec.budget.trials, teacher_bytes)


@contextmanager
def _cluster_joined(spec: StudySpec, folder: Path) -> Iterator[None]:
    """Join the cluster, where one is named, before anything is measured; leave it at the end.

    Args:
        folder: of the study's logs.
    """
    if not spec.workers:
        yield
        return
    from .execution.ray_runner import is_cluster_named, join, ray  # only here: importing ray takes a second

    try:
        if is_cluster_named():
            join(spec, folder)
        yield
    finally:
        ray.shutdown()


def _prepared(spec: StudySpec, given: Workload | None, listeners: Sequence[Listener]) -> PreparedStudy:
    """As `prepare`; the workload is loaded within the limit that the start of a worker has: the user's code may hang here as well as
    there.

    Raises:
        SearchError: it takes longer.
    """
    limit = time_limited(start_limit_s(spec.budget.trial_timeout_s), f"loading the workload {SLOW_START}")
    try:
        return prepare(spec, given, lambda what: _announce(what, listeners), limit)
    except TimeLimitError as error:
        raise SearchError(str(error)) from error


def _start_ray(prepared: PreparedStudy, folder: Path, listeners: Sequence[Listener]) -> None:
    """Start Ray here, where that is to be, before anything is measured: where it cannot start, that is known in seconds.

    Args:
        folder: of the study's logs.
    """
    if not prepared.spec.workers:
        return
    from .execution.ray_runner import cpus_here, is_cluster_named, join  # only here, as above

    if not is_cluster_named():
        _announce("starting Ray", listeners)
        join(prepared.spec, folder, cpus_here(prepared.spec, prepared.target, prepared.spec.workers))


def _announce(what: str, listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener(Preparing(what))


@contextmanager
def _modules_kept() -> Iterator[None]:
    """Have the search look for garbage among what it makes itself: all modules take a third of a second each time."""
    if gc.get_freeze_count():  # the program has done so
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _tidy(event: Event) -> None:
    """Give back to the system what a part of the preparation freed, before the next one."""
    if isinstance(event, Preparing):
        tidy()


def _remark(prepared: PreparedStudy, progress: SearchProgress) -> None:
    """Say what is to be known of the workload."""
    for remark in prepared.context.workload.remarks:
        progress.say(remark, "yellow")
    for group, reason in prepared.unprunable.items():
        progress.say(f"channels of {group} stay: {reason}", "dim")


def _describe(prepared: PreparedStudy, progress: SearchProgress) -> None:
    """Say what is searched."""
    progress.say(
        f"{len(prepared.layers)} layers, {len(prepared.groups)} channel groups, {len(prepared.space.knobs)} knobs; "
        f"target {prepared.target.name}"
    )
    if prepared.target.predict and prepared.target.latency_table is not None:
        table = prepared.target.latency_table
        progress.say(
            f"latency is predicted by the table in the target's card (median error {table.error:.1%}), not measured",
            "yellow",
        )


def _run(search: Search, progress: SearchProgress, process: WorkerProcess) -> None:
    """Run a search to its confirmed front, its page on the dashboard kept up to date.

    Args:
        process: that has measured the uncompressed model.
    """
    publisher = Publisher(search)
    search.listen(publisher.hear)
    progress.follow(search)
    _warn_of_a_noisy_machine(search, progress)
    _warn_of_saturation(search, progress)
    try:
        search.tell(Preparing("starting workers, which load the workload again"))
        with closing(_runner(search, process)) as runner:
            try_trials(search, runner)
            confirm_front(search, runner)
        search.kept.finish()
        search.checkpoints.clear()
    finally:
        publisher.publish(force=True)
    if (sentence := verdict(search.store, search.spec.study)) is not None:
        progress.say(sentence, "yellow")
        progress.say(_limits(search), "yellow")
    if nothing := search.stopped_because or _found_nothing(search):
        raise SearchError(f"study {search.spec.study!r}: {nothing}")


def _limits(search: Search) -> str:
    """What bounds the latency of the uncompressed model, where nothing found is worth it."""
    prepared, workload = search.prepared, search.prepared.context.workload
    found = limits_on(workload.model, workload.example_input, prepared.layers, prepared.groups, prepared.target)
    return limits_text(found, prepared.target, search.reference.latency_ms)


def _runner(search: Search, process: WorkerProcess) -> Runner:
    if not search.spec.workers:
        return LocalRunner(search, True, process)
    process.close()
    from .execution.ray_runner import RayRunner  # only here: importing ray takes a second

    return RayRunner(search, search.spec.workers)


def _found_nothing(search: Search) -> str | None:
    """Why the front holds nothing but the uncompressed model; None where it holds more."""
    trials = search.store.trials(search.spec.study)
    if search.spec.budget.trials == 1:
        return None  # no more was asked for
    on_front = {point.trial for point in search.front}
    if any(trial.number in on_front and not trial.policy.is_free for trial in trials):
        return None
    if not trials and search.spec.budget.timeout_s is not None:
        return "no trial ended before the time was over; give it a longer timeout_s"
    because = [f"{count} {state}: {reason}" for count, state, reason in reason_rows(trials)[:1]]
    return "; ".join(["found nothing but the uncompressed model", states_text(trials), *because])


def _warn_of_a_noisy_machine(search: Search, progress: SearchProgress) -> None:
    """Say so where the uncompressed model, timed against itself, differs from itself beyond noise."""
    against_itself = search.store.get_study(search.spec.study).baseline["speedup"]
    if not against_itself.low <= 1 <= against_itself.high:
        progress.say(
            f"the uncompressed model measured {against_itself.value:.3f}x as fast as itself: this machine was busy "
            "or its clock moved; latencies of this study carry that error",
            "yellow",
        )


def _warn_of_saturation(search: Search, progress: SearchProgress) -> None:
    """Say so where the machine computes 8-bit layers unlike most others."""
    choices, runtime = search.prepared.space.choices, search.prepared.target.runtime
    offered = 8 in choices["weight_bits"] and 8 in choices["activation_bits"]
    if offered and saturates(search.store.get_study(search.spec.study).machine, runtime):
        progress.say(
            f"this processor has no VNNI: sums of 8-bit weights times 8-bit activations overflow in {runtime}'s kernels; "
            "accuracies are those of such processors, see docs/guide/choosing-a-target.md",
            "yellow",
        )
