"""What a worker's process leaves behind when it dies within a trial, and the limits that end it.

Crashes and hangs are reported by `faulthandler`, which needs no Python to run: also those within C code.
"""

from __future__ import annotations

import faulthandler
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TextIO

from ...core.time_limit import Frame, place_text
from ..trials.trial_log import append, kept_log, printed_to_log
from ..trials.worker import Stage
from .memory_limit import MEMORY, memory_limited

FILE = "crash.txt"

_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_MEMORY = re.compile(rf"^{MEMORY}(.+)$", re.MULTILINE)


@contextmanager
def crash_reported(folder: Path, limit_s: float | None, memory_gb: float | None = None) -> Iterator[None]:
    """Have this process leave a report in `folder` if the block crashes it, and end it where the block exceeds a limit.

    What the block prints goes to the trial's log in `folder`.

    Args:
        limit_s: seconds; None lets it take as long as it likes.
        memory_gb: the most memory of this process and those it started, in 10^9 bytes; None for no limit.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError:  # what the block writes there fails too, and says so; the limits hold all the same
        with _reporting(sys.__stderr__, limit_s), memory_limited(memory_gb, sys.__stderr__):
            yield
        return
    with file, _reporting(file, limit_s), memory_limited(memory_gb, file), printed_to_log(folder):
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
        fatal: such as "Segmentation fault"; None where it exceeded a limit.
        place: where it was, as in " (in my_task.py:12 metric)", or "".
        memory: what it took and what it might, as in "2.31 GB of 2 GB"; None unless that ended it.
        text: what ended it, and the stack of its main thread, the most recent call last as in a traceback.
    """

    fatal: str | None
    place: str
    memory: str | None = None
    text: str = field(default="", compare=False)

    @classmethod
    def of(cls, folder: Path) -> CrashReport | None:
        """The report in `folder`; None where the process left none."""
        try:
            text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        fatal, memory = _FATAL.search(text), _MEMORY.search(text)
        if fatal is None and memory is None and not text.startswith("Timeout"):
            return None
        main_thread = text.rpartition("(most recent call first):")[2]
        stack = [match[0] for match in _FRAME.finditer(main_thread)]
        lines = "\n".join([text.partition("\n")[0], *reversed(stack), ""])
        return cls(fatal and fatal[1], _place(main_thread), memory and memory[1], lines)


class Limited(Protocol):
    """What a process runs within limits, a task for example.

    Attributes:
        folder: for its log.
        limit_s: seconds; None without.
        what: how messages call it.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def limit_s(self) -> float | None: ...

    @property
    def what(self) -> str: ...


def stage_of_death(task: Limited, trial_timeout_s: float | None, how: str | None, was_killed: bool = False) -> Stage:
    """The last stage of a task whose process died.

    Args:
        trial_timeout_s: of the study; a task with another limit was ended because the search ran out of time.
        how: what is known of it where it was started, as in "ended with exit code 3"; None where that killed it at its limit.
        was_killed: whether something else ended it, unless it left a report: the system short of memory, an operator. The trial is then
            tried again, and goes on from its checkpoint.
    """
    report = CrashReport.of(task.folder)
    if report is not None:
        append(task.folder, report.text)
    log = kept_log(task.folder)
    if how is None or (report is not None and report.fatal is None):
        if (report is None or report.memory is None) and task.limit_s != trial_timeout_s:
            return Stage("failed", reason="the search ran out of time", fault="time")
        return Stage("failed", reason=_limit_text(report, trial_timeout_s), artifacts=log)
    is_lost = was_killed and report is None
    reason = f"{task.what}'s process {death_text(how, report)}"
    return Stage("failed", reason=reason, artifacts=log, fault="lost" if is_lost else None)


def _limit_text(report: CrashReport | None, trial_timeout_s: float | None) -> str:
    """Which limit of a trial its process was ended at, and where it was."""
    if report is not None and report.memory is not None:
        return f"took more memory than trial_memory_gb allows: {report.memory}{report.place}"
    place = report.place if report is not None else ""
    return f"took longer than trial_timeout_s = {trial_timeout_s:g} s{place}"


def death_text(how: str, report: CrashReport | None) -> str:
    """How a process died, and where: `how` is known where it was started, the rest is what it reported itself."""
    if report is None:
        return how
    fatal = f": {report.fatal}" if report.fatal is not None else ""
    return f"{how}{fatal}{report.place}"


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
    return place_text([Frame(m["file"], int(m["line"]), m["function"]) for m in _FRAME.finditer(trace)])
