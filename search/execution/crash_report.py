"""What a worker's process leaves behind when it dies within a trial, and the time limit that ends it.

Both are `faulthandler`'s, which needs no Python to run: a hang or a crash within C code is reported too.
"""

from __future__ import annotations

import faulthandler
import re
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..proposals import Proposal
from ..trials.worker import Stage

FILE = "crash.txt"

_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_OWN = Path(__file__).parents[2]


@contextmanager
def crash_reported(folder: Path, limit_s: float | None) -> Iterator[None]:
    """Have this process leave a report in `folder` if the block crashes it, and end it if the block takes longer.

    Args:
        limit_s: seconds; None lets it take as long as it likes.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError:  # what the block writes there fails too, and says so; the limit holds all the same
        with _reporting(sys.__stderr__, limit_s):
            yield
        return
    with file, _reporting(file, limit_s):
        yield
    path.unlink(missing_ok=True)  # gone with its folder, where that could not be written to


@contextmanager
def _reporting(file: TextIO | None, limit_s: float | None) -> Iterator[None]:
    number = file.fileno() if file is not None else 2
    faulthandler.enable(number)
    if limit_s is not None:
        faulthandler.dump_traceback_later(max(limit_s, 0.001), exit=True, file=number)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()


@dataclass(frozen=True)
class CrashReport:
    """How a process died.

    Attributes:
        fatal: such as "Segmentation fault"; None where it took longer than its limit.
        place: where it was, as in " (in my_task.py:12 metric)", or "".
    """

    fatal: str | None
    place: str

    @classmethod
    def of(cls, folder: Path) -> CrashReport | None:
        """The report in `folder`; None where the process left none."""
        try:
            text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        fatal = _FATAL.search(text)
        if fatal is None and not text.startswith("Timeout"):
            return None
        main_thread = text.rpartition("(most recent call first):")[2]
        return cls(fatal and fatal[1], _place(main_thread))


def stage_of_death(proposal: Proposal, trial_timeout_s: float | None, how: str | None) -> Stage:
    """The last stage of a trial whose process died.

    Args:
        trial_timeout_s: of the study; a trial with another limit was ended because the search ran out of time.
        how: what is known of it where it was started, as in "ended with exit code 3"; None where that killed it at its limit.
    """
    report = CrashReport.of(proposal.folder)
    place = report.place if report is not None else ""
    if how is None or (report is not None and report.fatal is None):
        if proposal.limit_s != trial_timeout_s:
            return Stage("failed", reason="the search ran out of time", fault="time")
        return Stage("failed", reason=f"took longer than trial_timeout_s = {trial_timeout_s:g} s{place}")
    fatal = f": {report.fatal}" if report is not None else ""
    return Stage("failed", reason=f"the trial's process {how}{fatal}{place}")


def exit_text(code: int | None) -> str:
    """How a process ended, by its exit code; negative is the signal that killed it."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}; does its code call os._exit?"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + ("; was memory short?" if code == -signal.SIGKILL else "")


def _place(trace: str) -> str:
    """The innermost frame that is the user's, else of slimfront's, else of all."""
    frames = [match.groupdict() for match in _FRAME.finditer(trace)]
    readable = [frame for frame in frames if not _is_library(frame["file"])]
    theirs = [frame for frame in readable if not frame["file"].startswith(f"{_OWN}/")]
    for frame in (theirs or readable or frames)[:1]:
        return f" (in {Path(frame['file']).name}:{frame['line']} {frame['function']})"
    return ""


def _is_library(file: str) -> bool:
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return file.startswith("<") or any(file.startswith(f"{folder}/") for folder in folders)
