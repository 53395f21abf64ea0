"""The dashboard over a study that was really searched: as a server, and as a page in a real browser."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait
from slimfront.search.dashboard import publish as publishing
from slimfront.search.dashboard.publish import Publisher, publish
from slimfront.search.dashboard.serve import feasible_front
from slimfront.search.driver import Search
from slimfront.search.execution.local import run_local
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.analysis.newest_front import front_points, objectives_of
from slimfront.studies.analysis.selection import pick
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

pytestmark = pytest.mark.slow

CHROMIUM, CHROMEDRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1600,1200",
)  # fmt: skip
STUDY = {
    "study": "tiny",
    "workload": f"{Path(__file__).parents[1] / 'tiny_workload.py'}:workload",
    "target": "cpu-openvino",
    "objectives": ["cross_entropy", "artifact_bytes"],
    # The unpruned 8-bit model ends early on the first; on the second end, fully measured, the pruned ones.
    "constraints": ["bops <= 8e6", "cross_entropy <= 0.005"],
    "budget": {"trials": 6},
    "workers": 0,
    "space": {"weight_bits": [2, 4, 8, 32], "activation_bits": [8, 32], "channel_sparsity": [0, 0.5]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def search(folder: Path, short_timings_of_module: None) -> Iterator[Search]:
    """A study searched to its end and published."""
    spec = StudySpec.from_document(STUDY, "tiny.yaml", folder)
    with Store(f"sqlite:///{folder}/slimfront.db") as store:
        search = Search(prepare(spec), store, folder / "artifacts")
        run_local(search)
        publish(search)
        yield search


@pytest.fixture(scope="module")
def winner(search: Search) -> int:
    study = search.store.get_study("tiny")
    return pick(front_points(search.store, study), objectives_of(study), "knee", study.baseline).trial


def numbers(search: Search, state: str, *, measured: bool = True) -> list[int]:
    """Trials in a state, with or without a value of every objective."""
    trials = search.store.trials("tiny", state)  # type: ignore[arg-type]
    return [t.number for t in trials if measured == all(name in t.measurements for name in search.spec.objectives)]


# Serving


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "slimfront", "dashboard", *map(str, arguments)]


@contextmanager
def serving(folder: Path, port: int, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command at work, and what it had printed when it began to listen."""
    process = subprocess.Popen(
        command(*arguments, "--port", port),
        cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Shells start background jobs with Ctrl-C ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        printed = ""
        while "Ctrl-C" not in printed:
            line = process.stdout.readline()
            assert line, f"ended with {process.wait()}: {printed}"
            printed += line
        yield process, printed
    finally:
        process.kill()
        process.wait()


def failing(folder: Path, *arguments: object) -> tuple[int, list[str]]:
    """Exit code and lines of a command that should end by itself."""
    ended = subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr.splitlines()


@pytest.fixture(scope="module")
def server(search: Search, folder: Path) -> Iterator[str]:
    """Address of a dashboard over the searched study."""
    port = free_port()
    with serving(folder, port, "tiny") as (_, printed):
        assert f"http://127.0.0.1:{port}/dashboard/studies/1;" in printed
        assert "authentication" not in printed
        yield f"http://127.0.0.1:{port}"


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read()


def test_listens_on_this_machine_only(server: str):
    port = int(server.rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):  # another address of the same machine
        socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("DELETE", "/api/studies/1", b""), ("POST", "/api/studies/1/rename", b'{"study_name": "other"}')],
)
def test_changes_are_refused(server: str, search: Search, method: str, path: str, body: bytes):
    request = urllib.request.Request(f"{server}{path}", data=body, method=method)
    request.add_header("Content-Type", "application/json")

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)

    assert refused.value.code == 403
    assert "read-only" in json.loads(refused.value.read())["reason"]
    assert [study["study_name"] for study in json.loads(get(f"{server}/api/studies"))["study_summaries"]] == ["tiny"]


def test_files_of_a_front_trial_are_its_policy(server: str, search: Search, winner: int):
    trials = json.loads(get(f"{server}/api/studies/1"))["trials"]
    trial = next(trial for trial in trials if trial["number"] == winner)
    files = {
        file["filename"]: get(f"{server}/artifacts/1/{trial['trial_id']}/{file['artifact_id']}").decode()
        for file in trial["artifacts"]
    }
    policy = search.store.get_trial("tiny", winner).policy

    assert files["policy.json"] == policy.to_json()
    rows = list(csv.DictReader(io.StringIO(files["layers.csv"])))
    assert {row["name"]: row["weight_bits"] for row in rows if row["weight_bits"]} == {
        name: str(layer.weight_bits) for name, layer in policy.layers.items()
    }


def test_best_trials_are_feasible(server: str, search: Search):
    best = [trial["number"] for trial in json.loads(get(f"{server}/api/studies/1"))["best_trials"]]

    assert best == list(search.store.current_front("tiny").members)


def test_a_study_in_postgresql_is_served_too(postgresql_url: str, tmp_path: Path):
    spec = StudySpec.from_document({**STUDY, "budget": {"trials": 3}}, "tiny.yaml", tmp_path)
    with Store(postgresql_url) as store:
        search = Search(prepare(spec), store, tmp_path / "artifacts")
        run_local(search)
        publish(search)
        members = list(store.current_front("tiny").members)
    port = free_port()
    with serving(tmp_path, port, "tiny", "--storage", postgresql_url):
        study = json.loads(get(f"http://127.0.0.1:{port}/api/studies/1"))

    assert members
    assert [trial["number"] for trial in study["best_trials"]] == members
    assert "tiny" in study["note"]["body"]


def test_feasible_front_leaves_out_what_violates_a_constraint():
    study = optuna.create_study(directions=["minimize", "maximize"])
    for values, excess in (((1.0, 1.0), 0.0), ((0.0, 2.0), 0.1), ((2.0, 3.0), -1.0), ((2.0, 2.0), -1.0)):
        trial = study.ask()
        trial.set_constraint("size", excess)
        study.tell(trial, values)

    assert [trial.number for trial in feasible_front(study.trials, study.directions)] == [0, 2]


def test_a_port_in_use_is_one_line(search: Search, folder: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, lines = failing(folder, "tiny", "--port", port)

    assert code == 2
    assert lines == [f"slimfront: cannot listen on 127.0.0.1:{port}: address already in use; try another port or host"]


def test_an_unknown_study_is_one_line(search: Search, folder: Path):
    code, lines = failing(folder, "tinny", "--port", free_port())

    assert code == 2
    assert len(lines) == 1
    assert "no study 'tinny'" in lines[0]


def test_ctrl_c_ends_it_quietly(search: Search, folder: Path):
    port = free_port()
    with serving(folder, port) as (process, printed):
        assert f"http://127.0.0.1:{port}/dashboard;" in printed  # no study named: the list of all
        get(f"http://127.0.0.1:{port}/api/studies")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)

    assert process.returncode == 0
    assert rest == "dashboard ended\n"  # no traceback, no line per request


def test_another_host_is_warned_of_in_one_line(search: Search, folder: Path):
    port = free_port()
    with serving(folder, port, "tiny", "--host", "0.0.0.0") as (_, printed):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()

    assert [line for line in printed.splitlines() if "no authentication" in line] == printed.splitlines()[:1]


def test_a_study_whose_search_has_not_got_to_optuna_yet_opens_the_list(tmp_path: Path):
    with Store(f"sqlite:///{tmp_path}/slimfront.db") as store:
        store.create_study(StudySpec.from_document(STUDY, "tiny.yaml", tmp_path), "", {}, {})
    port = free_port()
    with serving(tmp_path, port, "tiny") as (_, printed):
        assert f"http://127.0.0.1:{port}/dashboard;" in printed


# Publishing


def attributes(search: Search) -> dict[str, object]:
    study = search.optuna.optuna_study
    return study._storage.get_study_system_attrs(study._study_id)


def test_publishing_is_throttled_unless_forced(search: Search, monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    monkeypatch.setattr(publishing.time, "monotonic", lambda: now)
    publisher = Publisher(search)

    assert publisher.publish()
    now += 9.9
    assert not publisher.publish()
    assert publisher.publish(force=True)
    now += 10.0
    assert publisher.publish()


def test_a_slow_publication_is_followed_by_a_longer_pause(search: Search, monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 0.0, 2.0, 101.9, 102.0, 102.0])  # made; began and ended; asked; began and ended
    monkeypatch.setattr(publishing.time, "monotonic", lambda: next(clock))
    publisher = Publisher(search)

    assert [publisher.publish() for _ in range(3)] == [True, False, True]


def test_what_has_not_changed_is_not_written_again(search: Search):
    publisher = Publisher(search)
    publisher.publish(force=True)
    before = attributes(search)

    publisher.publish(force=True)

    assert attributes(search) == before  # each note written has a newer version


def test_what_is_published_is_small(search: Search):
    size = {key: len(json.dumps(value)) for key, value in attributes(search).items()}

    assert sum(size.values()) < 20_000
    assert max(size.values()) <= 4096  # what MySQL and older schemas of Optuna take


# In the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    missing = [str(program) for program in (CHROMIUM, CHROMEDRIVER) if not program.exists()]
    if missing:
        pytest.skip(f"no browser: {', '.join(missing)} not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    yield browser
    browser.quit()


Open = Callable[..., str]


@pytest.fixture
def opened(browser: webdriver.Chrome, server: str) -> Open:
    """Opens a page of the study and returns its text once that holds all of `texts`."""

    def text() -> str:
        return browser.execute_script("return document.body.innerText")

    def open_page(path: str, *texts: str) -> str:
        browser.get(f"{server}/dashboard/studies/1{path}")
        waiting = WebDriverWait(browser, 60)
        waiting.until(lambda _: all(wanted in text() for wanted in texts), f"{path} lacks one of {texts}")
        return text()

    return open_page


def plots(browser: webdriver.Chrome, identity: str) -> list[dict]:
    """Data of a drawn plotly figure: per trace its name, type, how many points, and hover text."""
    script = """
        const plot = document.getElementById(arguments[0]);
        if (!plot || !plot.data || !plot.querySelector(".scatterlayer path, .heatmaplayer image"))
            return null;
        return plot.data.map(t => ({name: t.name || "", type: t.type, n: (t.x || []).length,
                                    hover: t.hovertemplate || "", colour: (t.marker || {}).color}));
    """
    return WebDriverWait(browser, 60).until(lambda _: browser.execute_script(script, identity), f"no figure {identity}")


def test_the_study_page_has_units_and_figures(opened: Open, browser: webdriver.Chrome, search: Search):
    opened("", "cross_entropy [nats]", "artifact_bytes [bytes]")

    traces = {trace["name"]: trace["n"] for trace in plots(browser, "user-defined-plot:slimfront-front")}
    front = list(search.store.current_front("tiny").members)
    assert traces["front"] == len(front)
    assert traces["uncompressed"] == 1
    outside = next(n for name, n in traces.items() if name.startswith("infeasible"))
    assert outside == len(numbers(search, "infeasible"))
    panels = [
        trace["n"] for trace in plots(browser, "user-defined-plot:slimfront-policies") if trace["type"] == "heatmap"
    ]
    assert panels
    assert set(panels) == {len(front)}


def test_infeasible_trials_are_grey_in_the_dashboards_own_plots(
    opened: Open, browser: webdriver.Chrome, search: Search, winner: int
):
    opened("", "Pareto Front", "Timeline", "Infeasible")  # the last in the timeline's legend

    grey = [trace for trace in plots(browser, "graph-pareto-front") if "Infeasible Trial" in trace["hover"]]
    assert [(trace["n"], trace["colour"]) for trace in grey] == [(len(numbers(search, "infeasible")), "#cccccc")]
    for number in numbers(search, "infeasible"):
        assert "Best Trial" not in detail(opened, number)
    assert "Best Trial" in detail(opened, winner)
    for number in numbers(search, "infeasible", measured=False):
        assert "Pruned" in detail(opened, number)


def detail(opened: Open, number: int) -> str:
    """What a trial's page says of it, next to the list of all."""
    heading = f"Trial {number} (trial_id="
    return opened(f"/trials?numbers={number}", heading, "User Attributes").split(heading)[1]


def test_the_note_tells_the_winner_and_how_to_export_it(opened: Open, search: Search, winner: int):
    page = opened("/note", f"slimfront export tiny --trial {winner} --to DIR")

    assert f"Trial {winner}, the knee of the front" in page
    assert "cross_entropy [nats, less is better]" in page
    assert "Constraints: bops <= 8000000, cross_entropy <= 0.005" in page
    assert "|" not in page  # the table is drawn as one
    for number in search.store.current_front("tiny").members:
        accuracy = search.store.get_trial("tiny", number).measurements["accuracy"].value
        assert any(line.startswith(str(number)) and f"{accuracy:.4f}" in line for line in page.splitlines())


def test_a_front_trials_page_has_its_policy_per_layer(opened: Open, winner: int):
    page = opened(f"/trials?numbers={winner}", "weight bits", "policy.json", "layers.csv")

    assert any(line.split()[:1] == ["stem"] for line in page.splitlines())


def test_nothing_is_wrong_on_the_console(opened: Open, browser: webdriver.Chrome):
    browser.get_log("browser")  # what earlier pages left
    opened("", "Pareto Front")
    time.sleep(1)

    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
