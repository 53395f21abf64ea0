"""What a search shows: the time left by hand, lines where there is no terminal, nothing but the reason of a refusal."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console
from slimfront.core.errors import StoreError
from slimfront.core.measurement import Measurement
from slimfront.hardware_profiles.profiling.fingerprint import machine
from slimfront.search import terminal
from slimfront.search.events import Preparing, SensitivityMeasured, TrialConfirmed, TrialFinished
from slimfront.search.run import run_search
from slimfront.search.terminal import Pace, SearchProgress
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.store.records import TrialRecord
from slimfront.studies.store.store import Store
from slimfront.studies.store.trial_state import TrialState


def ticking(*moments: float) -> Iterator[float]:
    return iter(moments)


@pytest.mark.parametrize(
    ("ends", "now", "remaining", "left"),
    [
        pytest.param([(0, 0), (10, 1), (20, 2)], 20, 10, None, id="two have ended"),
        pytest.param([(0, 0), (10, 1), (20, 2), (30, 3)], 30, 10, 100, id="one worker"),
        pytest.param([(0, 0), (10, 2), (20, 4)], 20, 10, 50, id="two workers"),
        pytest.param([(0, 0), (10, 1), (20, 2), (30, 3)], 38, 10, 92, id="eight seconds on"),
        pytest.param([(0, 0), (10, 1), (20, 2), (30, 3)], 99, 1, 0, id="one that takes long"),
        pytest.param([(0, 7), (10, 8), (20, 9), (30, 10)], 30, 1, 10, id="a study that goes on"),
    ],
)
def test_the_time_left_follows_from_how_often_trials_end(ends, now, remaining, left):
    clock = ticking(*(moment for moment, _ in ends), now)
    pace = Pace(lambda: next(clock))
    for _, ended in ends:
        pace.note(ended)
    assert pace.left(remaining) == left


def test_only_the_latest_ends_count():
    clock = ticking(0, *(1000 + i for i in range(40)), 1039)
    pace = Pace(lambda: next(clock))
    for ended in range(41):
        pace.note(ended)
    assert pace.left(5) == 5


SAVED = ["accuracy_drop", "latency_ms", "packed_bytes"]
"""Objectives of which fewer bits always make one better, so that the search finds something."""


@pytest.fixture
def searched(tiny_spec, tmp_path, monkeypatch) -> tuple[str, str]:
    """(database, what a search of four trials printed where there is no terminal, a line for every event)."""
    monkeypatch.setattr(terminal, "LINE_INTERVAL_S", 0.0)
    monkeypatch.setattr(terminal, "PATIENCE_S", float("inf"))  # a busy machine takes long to open the study
    said, url = io.StringIO(), f"{tmp_path}/study.db"
    flags = {**machine(), "flags": ["avx2"]}
    monkeypatch.setattr("slimfront.search.trials.prepared_study.machine", lambda: flags)
    spec = tiny_spec(objectives=SAVED)
    run_search(spec, url, tmp_path / "artifacts", Console(file=said, width=200))
    return url, said.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_search_without_a_terminal_counts_and_one_that_is_refused_shows_nothing(searched, tiny_spec, tmp_path):
    url, said = searched
    lines = said.splitlines()
    assert lines[0] == "  channels of fc stay: its channels are the model's output"
    assert [line for line in lines if re.match(r"  4 of 4 trials, \d:\d\d; front of \d, best ", line)]
    assert re.fullmatch(r"  4 trials in \d:\d\d, \d points? on the front", lines[-1])
    [warned] = [line for line in lines if "this processor has no VNNI" in line]
    joined = [line for line in lines if "joins the front" in line]
    assert lines.index(warned) < lines.index(joined[0])
    assert re.search(
        r"trial \d joins the front: accuracy drop -?\d\.\d{4}.*, latency [\d.e-]+( ±[\d.e-]+)? ms, packed [\d.]+ kB$",
        joined[0],
    )
    assert not re.search(r"trials, \d:\d\d; counting", said), "how many there are was not known yet"
    assert "hypervolume" not in said
    assert "\x1b" not in said
    again = io.StringIO()
    with pytest.raises(StoreError, match="another seed; go on with seed 0"):
        run_search(tiny_spec(seed=5, objectives=SAVED), url, tmp_path / "artifacts", Console(file=again, width=200))
    assert again.getvalue() == ""
    with Store(url) as store:
        assert len(store.trials("tiny")) == 4


def failed(reason: str) -> TrialRecord:
    """A trial 3 that failed."""
    moment = datetime.now(UTC)
    return TrialRecord(
        study="tiny", number=3, policy_json=Policy().to_json(), digest=Policy().digest, state=TrialState.FAILED, reason=reason,
        worker=None, retry_of=None, rung=None, driver_died=False, started=moment, finished=moment, violations=(), measurements={},
    )  # fmt: skip


def test_lines_are_held_back_until_the_study_is_open(tiny_spec):
    said = io.StringIO()
    with SearchProgress(tiny_spec(), Console(file=said)) as progress:
        progress.say("channels of fc stay")
        assert said.getvalue() == ""
        progress.hear(TrialFinished(failed("ValueError: [3, 8]\n:x: [bold]")))
        progress.say("at once")
    shown = said.getvalue().splitlines()
    assert shown == ["  channels of fc stay", "  trial 3 failed: ValueError: [3, 8] :x: [bold]", "  at once"]


def test_what_precedes_the_first_trial_is_a_line_of_a_file_once_it_takes_long(tiny_spec, monkeypatch):
    said = io.StringIO()
    with SearchProgress(tiny_spec(), Console(file=said, width=200)) as progress:
        progress.hear(Preparing("loading"))
        monkeypatch.setattr(terminal, "PATIENCE_S", 0.0)
        progress.say("a remark")
        progress.hear(Preparing("proving"))
        assert re.fullmatch(r"  \S+( \w+)?: proving\n", said.getvalue())  # remarks wait until the study is open
        progress.hear(TrialFinished(failed("ValueError")))
    assert said.getvalue().splitlines()[1] == "  a remark"


def test_a_search_whose_terminal_was_closed_ends_for_its_own_reason(tiny_spec):
    ours, theirs = os.openpty()
    terminal = os.fdopen(theirs, "w", buffering=1)

    def interrupted():
        with SearchProgress(tiny_spec(), Console(file=terminal, force_terminal=True)):
            os.close(ours)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with suppress(OSError):  # what it holds can no longer be written
        terminal.close()


def test_the_front_that_is_measured_again_is_counted_for_itself(tiny_spec, monkeypatch):
    monkeypatch.setattr(terminal, "LINE_INTERVAL_S", 0.0)
    said = io.StringIO()
    with SearchProgress(tiny_spec(), Console(file=said, width=200)) as progress:
        progress.hear(SensitivityMeasured(1, 27))
        progress.hear(TrialConfirmed(4, 1, 3))
        progress.hear(TrialConfirmed(2, 2, 3))
    first, *others = (line.partition(",")[0] for line in said.getvalue().splitlines())
    assert first == "  0:00: sensitivity of single choices"
    assert others == [f"  {done} of 3 points of the front measured again" for done in (1, 2)]


@pytest.mark.parametrize(("budget", "counted"), [({"trials": 40}, "3 of 40 trials"), ({"timeout_s": 600}, "3 trials")])
def test_the_bar_fits_a_terminal_of_eighty_columns_and_goes_away(budget, counted, tiny_spec):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    with SearchProgress(tiny_spec(budget=budget), terminal) as progress:
        progress.hear(SensitivityMeasured(3, 27))
        progress._count(3, "front of 12, best accuracy drop 0.0000, latency 0.01234 ms, artifact 123.4 kB")
        with terminal.capture() as captured:
            terminal.print(progress._bar())
    first, second = captured.get().splitlines()[:2]
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", first)
    assert plain.startswith(f"  {counted} ")
    assert ("left" in plain) == ("timeout_s" in budget)  # of trials too few have ended to tell
    assert len(plain) <= 80
    assert len(second) <= 80
    assert "best accuracy drop" in second
    assert terminal.file.getvalue().endswith("\x1b[2K") or "\x1b[?25h" in terminal.file.getvalue()[-40:]


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("paired-median", None),
        ("paired-median at 2600 MHz; too noisy: the worse end counts", None),  # the table marks it
        ("predicted by a latency table; of a kind", None),
        (
            "paired-median at 2600 MHz; waited 10 s for a quiet machine; too noisy: the worse end counts",
            "waited 10 s for a quiet machine; too noisy: the worse end counts",
        ),
    ],
)
def test_a_trial_timed_on_a_busy_machine_has_a_line(method, line, tiny_spec):
    said = io.StringIO()
    speedup = Measurement("speedup", 2.0, 2.0, 2.2, "ratio", 40, method)
    trial = replace(failed(""), state=TrialState.COMPLETE, measurements={"speedup": speedup})
    with SearchProgress(tiny_spec(), Console(file=said, width=200)) as progress:
        progress.say("open")
        progress.hear(TrialFinished(trial))
    assert said.getvalue().splitlines()[1:] == ([] if line is None else [f"  trial 3: {line}"])
