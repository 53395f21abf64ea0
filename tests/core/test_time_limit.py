"""Code of this process that hangs is given up, and the line says where it was."""

import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from slimfront.core.errors import TimeLimitError
from slimfront.core.time_limit import Frame, place_text, time_limited


def my_metric() -> None:
    time.sleep(60)


def test_what_takes_too_long_is_given_up_and_named() -> None:
    began = time.monotonic()
    with pytest.raises(TimeLimitError) as raised, time_limited(0.2, "scoring took longer than its limit"):
        my_metric()
    assert time.monotonic() - began < 5
    assert re.fullmatch(
        r"scoring took longer than its limit = 0.2 s \(in test_time_limit.py:\d+ my_metric\)", str(raised.value)
    )


def test_a_timer_that_ran_before_goes_on() -> None:
    """pytest-timeout has one of its own."""
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with time_limited(5, "nothing"):
            time.sleep(0.5)
            assert heard == []
        time.sleep(0.1)
        assert heard == [signal.SIGALRM]
        with time_limited(None, "nothing"):
            assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


def test_other_threads_have_no_limit() -> None:
    done: list[str] = []

    def work() -> None:
        with time_limited(0.01, "work"):
            time.sleep(0.1)
            done.append("all of it")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["all of it"]


@pytest.mark.parametrize(
    "within", ["", "    with time_limit.time_limited(5, 'a part'): pass; "], ids=["at once", "after a part"]
)
def test_what_cannot_be_interrupted_ends_its_process_with_a_traceback(within: str) -> None:
    code = (
        "import ctypes\nfrom slimfront.core import time_limit\ntime_limit.LAST_RESORT_S = 0.2\n"
        f"with time_limit.time_limited(0.2, 'work'):\n{within}\n    ctypes.PyDLL(None).sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert 'File "<string>", line 6' in ended.stderr


def test_a_timer_of_somebody_else_ends_no_process_after_a_limit() -> None:
    code = (
        "import signal, time\nfrom slimfront.core import time_limit\ntime_limit.LAST_RESORT_S = 0.1\n"
        "signal.signal(signal.SIGALRM, lambda *_: print('rang', flush=True))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "with time_limit.time_limited(5, 'work'): pass\ntime.sleep(0.5)\nprint('lives')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.split()) == (0, ["rang", "lives"]), ended.stderr


def test_the_users_own_frame_comes_first() -> None:
    assert place_text([]) == ""
    library, theirs = Frame(threading.__file__, 1, "wait"), Frame("/home/me/task.py", 12, "metric")
    assert place_text([library, theirs]) == " (in task.py:12 metric)"
    assert place_text([library]) == " (in threading.py:1 wait)"
