"""Fixtures that the tests of several folders share."""

import gc
import glob
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import loky.backend
import pytest
from loky import wrap_non_picklable_objects
from slimfront.core.machine.garbage import collect_seldom
from slimfront.workloads.builtin.digits import digits
from slimfront.workloads.workload import Workload

_databases = itertools.count()

collect_seldom()  # as `slimfront.cli` does
TIMING_SECONDS = 0.2
"""The most seconds of a timing where only what is done with the figure is tested."""

LONGEST = ("test_tutorial.py", "test_cli.py", "test_generated_models.py")
"""Files that take minutes each: one that began last would keep one process busy long after the other has ended."""

hypothesis.settings.register_profile("slimfront", deadline=None)  # a shared machine may pause for seconds
hypothesis.settings.load_profile("slimfront")


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a cache of its own, and each of the processes that share the tests a core.

    What a user's cache holds must not decide what passes: a built-in network is trained by the first test that asks for it,
    while the others wait for its file. `SLIMFRONT_CACHE` says where, for several sessions that share one cache. Models this
    small only lose by a second thread. Benches wait neither for the tests next to them to end nor, on a core of their own, for each
    other, and searches time for less than half as long as for a user.
    """
    os.environ.setdefault("SLIMFRONT_BENCH_WAIT_S", "0")
    os.environ.setdefault("SLIMFRONT_TIMING_S", "0.4")
    loky.backend.get_context = _Forked().get_context
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
        locks = tempfile.TemporaryDirectory(prefix="slimfront-tests-")
        config.add_cleanup(locks.cleanup)
        os.environ["SLIMFRONT_BENCH_LOCK"] = f"{locks.name}/bench.lock"
    elif "SLIMFRONT_CACHE" not in os.environ:
        cache = tempfile.TemporaryDirectory(prefix="slimfront-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ["SLIMFRONT_CACHE"] = cache.name


class _Forked:
    """Makes processes in place of loky's, from a server that has imported once what each of loky's takes four seconds to import.

    They are processes of their own all the same: nothing of the test's is in them. The environment is the server's, so that a test
    that changes it gets one of loky's.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            [
                "slimfront.search.trials.worker",
                "slimfront.compression.quantization.quantize",
                "torch.export._trace",
                "openvino",
            ]
        )
        self._environment: dict[str, str] | None = None
        self._loky: Any = loky.backend.get_context

    def get_context(self, method: str | None = None) -> Any:
        now = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        self._environment = self._environment or now
        return self if method == "loky" and now == self._environment else self._loky(method)

    def Pipe(self) -> Any:
        return self._context.Pipe()

    def Process(self, target: Callable[..., None], args: tuple[Any, ...]) -> Any:
        def run(*given: Any) -> None:
            parent: Any = multiprocessing.parent_process()
            os.getppid = lambda: parent.pid if parent.is_alive() else 1  # not the server
            target(*given)

        return self._context.Process(target=wrap_non_picklable_objects(run), args=args)  # pyright: ignore


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, then others with slow tests, so that processes that share the files end together."""
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path not in slow))


def pytest_collection_finish() -> None:
    _keep_modules()


def _keep_modules() -> None:
    """Leave out of all looks for garbage, of which searches and timings take many, what is there by now: modules above all."""
    gc.collect()
    gc.freeze()


@contextmanager
def in_process_bench() -> Iterator[None]:
    """Benches without a process of their own, and short timings: for what is done with a figure, however noisy it is.

    A bench's process takes a second to start, and each search starts three. What that process and the figures are worth, the tests of
    `hardware_profiles/bench` show.
    """
    from slimfront.hardware_profiles.bench import bench  # not above: it reads where its lock is
    from slimfront.hardware_profiles.cards.target import Target

    states: dict[bench.Bench, bench._State] = {}

    def call(self: bench.Bench, function: Callable[..., Any], *arguments: Any) -> Any:
        if self not in states:
            document, reference, inputs, cores, _ = self._setup
            target = Target.model_validate_json(document)
            session = bench.load_streams(Path(reference), target)
            shaped, wait = list(self._shaped), bench.QuietWait(lambda _: 0.0)
            calm_s = [float("inf")] * len(shaped)
            states[self] = bench._State(target, Path(reference), session, inputs, shaped, cores, wait, calm_s)
        patched.setattr(bench, "_state", states[self], raising=False)
        return function(*_shortened(arguments))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bench.Bench, "start", lambda self: None)
        patched.setattr(bench.Bench, "_call", call)
        _keep_modules()  # some have been imported since
        yield


def _shortened(arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments of a bench's function, of whose numbers the first is the seconds of a timing."""
    which = next((index for index, each in enumerate(arguments) if isinstance(each, float)), None)
    return [min(each, TIMING_SECONDS) if index == which else each for index, each in enumerate(arguments)]


@pytest.fixture
def short_timings() -> Iterator[None]:
    with in_process_bench():
        yield


@pytest.fixture(scope="module")
def short_timings_of_module() -> Iterator[None]:
    with in_process_bench():
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the process that started the tests ignores it, as shells do for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def digits_workload() -> Workload:
    """The `digits` workload, from the session's cache: its model is trained once. Copy before changing."""
    return digits(progress=False)


def _postgresql_binaries() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += [Path(folder) for folder in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    pytest.skip("no PostgreSQL server: neither on PATH nor under /usr/lib/postgresql")


def _as_server_user(folder: Path) -> list[str]:
    """A prefix that runs a command as someone PostgreSQL agrees to run as: anyone but root."""
    if os.geteuid() != 0:
        return []
    for user in ("postgres", "nobody"):
        if subprocess.run(["id", user], capture_output=True, check=False).returncode == 0:
            shutil.chown(folder, user)
            return ["runuser", "-u", user, "--"]
    pytest.skip("no user but root to run PostgreSQL as")


@dataclass(frozen=True)
class PostgresqlServer:
    """A server of our own that listens on a socket in its folder only.

    Attributes:
        url: with {name} for the database.
        control: runs pg_ctl with these arguments.
    """

    url: str
    control: Callable[..., None]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """One for all tests of this process."""
    binaries = _postgresql_binaries()
    folder = Path(tempfile.mkdtemp(prefix="slimfront-postgresql-"))
    run_as = _as_server_user(folder)

    def run(*command: str) -> None:
        subprocess.run([*run_as, *command], check=True, capture_output=True, cwd=folder, timeout=120)

    data = str(folder / "data")
    run(str(binaries / "initdb"), "-D", data, "-U", "slimfront", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    log = str(folder / "log")
    control = partial(run, str(binaries / "pg_ctl"), "-D", data, "-l", log, "-w", "-o", options)
    control("start")
    try:
        yield PostgresqlServer(f"postgresql://slimfront@/{{name}}?host={folder}", control)
    finally:
        control("-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> str:
    psycopg = pytest.importorskip("psycopg")
    name = f"test_{next(_databases)}"
    with psycopg.connect(postgresql_server.url.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgresql_server.url.format(name=name)
