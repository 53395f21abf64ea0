"""What the dashboard lets through and what it does not, over real sockets; and that its page is quick and says the same."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from optuna_dashboard import _inmemory_cache, _serializer
from slimfront.search.dashboard import page as dashboard_page
from slimfront.search.dashboard import serve as dashboard
from slimfront.search.dashboard.read_only import guarded, known_hosts
from slimfront.search.optuna.storage import open_storage
from slimfront.studies.store.store import Store

KNOBS = {"conv.weight_bits": (4, 8, 32), "conv.sparsity": (0.0, 0.5, "2:4"), "width": (0.5, 1, None)}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, optuna.storages.RDBStorage]]:
    """A study of 40 trials: complete, pruned, failed and running ones, with attributes and constraints."""
    folder = tmp_path_factory.mktemp("door")
    with Store(f"sqlite:///{folder}/slimfront.db") as store:
        storage = open_storage(store)
        study = optuna.create_study(storage=storage, study_name="tiny", directions=["minimize", "maximize"])
        study.sampler = optuna.samplers.RandomSampler(0)
        for number in range(40):
            trial = study.ask()
            for name, choices in KNOBS.items():
                trial.suggest_categorical(name, choices)
            trial.set_user_attr("latency_ms", number / 7)
            trial.set_user_attr("digest", f"abc{number}")
            storage.set_trial_system_attr(trial._trial_id, "constraints", [float(number % 3 - 1)])
            if number % 10 == 9:
                study.tell(trial, state=TrialState.FAIL)
            elif number % 10 == 8:
                study.tell(trial, state=TrialState.PRUNED)
            elif number != 37:
                study.tell(trial, [number * 1.5, -number])
        yield store, storage


@pytest.fixture(scope="module")
def port(storage: tuple[Store, optuna.storages.RDBStorage]) -> Iterator[int]:
    """Of a dashboard that listens, as `serve` has it."""
    app = guarded(dashboard.dashboard_of(*storage), known_hosts("127.0.0.1", ["box.example"]))
    with dashboard._listen("127.0.0.1", 0, app) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def answer(port: int, *lines: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request written line by line."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode() + body)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = received.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in headers), content


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "box.example:8080"])
def test_this_machine_and_the_names_given_are_answered(port: int, host: str):
    status, _, body = answer(port, "GET /api/studies HTTP/1.0", f"Host: {host}")
    assert (status, json.loads(body)["study_summaries"][0]["study_name"]) == (200, "tiny")


@pytest.mark.parametrize(
    "host", ["Host: evil.example", "Host: 127.0.0.1.evil.example:8080", "Host: 10.0.0.1", "Host: [", "Host:", "X: y"]
)
def test_a_page_of_another_name_reads_nothing(port: int, host: str):
    status, _, body = answer(port, "GET /api/studies HTTP/1.0", host)
    assert (status, b"tiny" in body) == (403, False)
    assert "--allow-host" in json.loads(body)["reason"]


def test_on_an_address_that_others_reach_addresses_are_known_and_names_are_not(port: int):
    assert {"10.0.0.1", "evil.example"} - known_hosts("10.0.0.1") == {"evil.example"}
    assert "*" in known_hosts("0.0.0.0")
    assert "*" not in known_hosts("localhost")


@pytest.mark.parametrize(
    ("length", "status"), [("400000000", 413), ("9" * 4000, 413), ("word", 400), ("-5", 400), ("1_0", 400), ("²", 400)]
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_body_is_not_believed_to_be_as_long_as_it_says(
    port: int, method: str, length: str, status: int, capfd: pytest.CaptureFixture[str]
):
    """The answer comes although the body never does: nothing waits for it, and nothing is set aside for it."""
    reported, _, body = answer(port, f"{method} /api/studies HTTP/1.0", "Host: localhost", f"Content-Length: {length}")
    assert reported == status
    assert json.loads(body)["reason"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_is_changed(port: int, method: str):
    about = (f"{method} /api/studies/1 HTTP/1.0", "Host: localhost", "Content-Length: 2")
    assert answer(port, *about, body=b"{}")[0] == 403
    assert answer(port, "GET /api/studies/1 HTTP/1.0", "Host: localhost")[0] == 200


def test_a_client_that_goes_away_leaves_no_traceback(port: int, capfd: pytest.CaptureFixture[str]):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST / HTTP/1.0\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nx")
    answer(port, "GET /api/studies HTTP/1.0", "Host: localhost")
    assert capfd.readouterr() == ("", "")


def test_a_long_answer_is_compressed_for_those_who_take_it(port: int):
    about = ("GET /api/studies/1 HTTP/1.0", "Host: localhost")
    plain, packed = answer(port, *about), answer(port, *about, "Accept-Encoding: gzip, br")
    assert packed[1]["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(packed[2])) == json.loads(plain[2])
    assert len(packed[2]) == int(packed[1]["Content-Length"]) < len(plain[2]) / 5


# The page


def _choices(named: list) -> list[tuple[str, list[str]]]:
    """In no order: optuna-dashboard sorts 16 before 8."""
    return [(name, sorted(map(str, found.choices))) for name, found in named]


def test_the_page_says_what_it_would_without_us(storage: tuple[Store, optuna.storages.RDBStorage]):
    trials = storage[1].get_all_trials(1)
    theirs = _inmemory_cache.get_cached_extra_study_property(_inmemory_cache.InMemoryCache(), 1, trials)
    ours = dashboard_page.study_properties(_inmemory_cache.InMemoryCache(), 1, trials)
    assert [_choices(ours[0]), _choices(ours[1]), sorted(ours[2]), ours[3]] == [
        _choices(theirs[0]), _choices(theirs[1]), sorted(theirs[2]), theirs[3]
    ]  # fmt: skip
    for trial in trials:
        theirs = dashboard_page._their_trial(1, trial, {})
        for parameter in theirs["params"]:
            parameter["distribution"] = dashboard_page.NO_CHOICES
        assert dashboard_page.serialize_trial(1, trial, {}) == theirs


def test_choices_are_sent_once(port: int):
    _, _, body = answer(port, "GET /api/studies/1 HTTP/1.0", "Host: localhost")
    page = json.loads(body)
    sent = {
        knob["name"]: [choice["value"] for choice in knob["distribution"]["choices"]]
        for knob in page["union_search_space"]
    }
    assert sent == {name: [str(choice) for choice in choices] for name, choices in KNOBS.items()}
    assert all(p["distribution"]["choices"] == [] for trial in page["trials"] for p in trial["params"])


def test_a_trial_that_ended_is_read_once(tmp_path: Path):
    with Store(f"sqlite:///{tmp_path}/slimfront.db") as store:
        storage = open_storage(store)
        study = optuna.create_study(storage=storage)
        finished = dashboard_page.FinishedTrials()
        first, second = study.ask(), study.ask()
        first.suggest_categorical("x", (1, 2))
        study.tell(first, 1.0)
        before = finished.trials(storage, 1)
        second.suggest_categorical("x", (1, 2))
        study.tell(second, 2.0)
        study.ask()
        after = finished.trials(storage, 1)
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    assert [trial.state.name for trial in after] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert before[0] is after[0]
    assert after[1].distributions == {"x": CategoricalDistribution((1, 2))}


def test_the_seams_of_the_library_are_where_they_were():
    """What is replaced by `quicken` must be what optuna-dashboard calls."""
    assert dashboard.dashboard_app.get_trials.__module__ == dashboard_page.__name__
    assert _serializer.serialize_frozen_trial is dashboard_page.serialize_trial


def test_the_page_of_a_long_study_receives_its_trials_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, most in (("FIRST_SENT", 3), ("MOST_SENT", 4), ("MOST_READ", 5)):
        monkeypatch.setattr(dashboard_page, name, most)
    with Store(f"sqlite:///{tmp_path}/slimfront.db") as store:
        storage = open_storage(store)
        study = optuna.create_study(storage=storage, study_name="long", directions=["minimize", "minimize", "maximize"])
        for number in range(12):
            trial = study.ask({"x": CategoricalDistribution((1, 2))})
            study.tell(trial, [float(number % 4), 1.0, 2.0])
        study.ask({"x": CategoricalDistribution((1, 2))})
        app, known, best = dashboard.dashboard_of(store, storage), [], []
        while len(known) < 13:
            environ = {"PATH_INFO": "/api/studies/1", "QUERY_STRING": f"after={len(known)}"}
            setup_testing_defaults(environ)
            page = json.loads(b"".join(app(environ, lambda *_: None)))
            known += [trial["number"] for trial in page["trials"]]
            best.append([trial["number"] for trial in page["best_trials"]])
    assert known == list(range(13))
    assert best == [[0], [0, 4], [0, 4, 8], [0, 4, 8]]
