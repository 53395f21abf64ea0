"""The log of a trial, a file in its folder: what it prints, and the traceback of what it raises."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ...core.texts import plain_text
from ...hardware_profiles.runtimes.base import Artifact
from ...studies.files.trial_log import KIND

FILE = "trial.log"

MOST_LINES = 200
"""The most lines that are kept of a traceback, its last: exceptions may say as much as they like."""


@contextmanager
def printed_to_log(folder: Path) -> Iterator[None]:
    """Have what this process prints go to the trial's log in `folder`, what C libraries print too; an empty one is removed."""
    with (folder / FILE).open("ab") as log, _redirected(log.fileno()):
        yield
    if (folder / FILE).is_file() and (folder / FILE).stat().st_size == 0:
        (folder / FILE).unlink()


@contextmanager
def _redirected(to: int) -> Iterator[None]:
    saved = [os.dup(number) for number in (1, 2)]
    _print_to([to, to])
    try:
        yield
    finally:
        _print_to(saved)
        for number in saved:
            os.close(number)


def _print_to(numbers: list[int]) -> None:
    _flush()
    for number, standard in zip(numbers, (1, 2), strict=True):
        os.dup2(number, standard)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def log_traceback(folder: Path, error: BaseException) -> None:
    """Add an exception's traceback to the log of the trial in `folder`, after what was printed so far."""
    _flush()
    lines = "".join(traceback.format_exception(error)).splitlines()[-MOST_LINES:]
    append(folder, "".join(f"{plain_text(line)}\n" for line in lines))


def append(folder: Path, text: str) -> None:
    """Add text to the log of the trial in `folder`."""
    with (folder / FILE).open("a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(text)


def kept_log(folder: Path) -> Mapping[str, Artifact]:
    """The log of a trial as one of its files; nothing where it has none."""
    path = folder / FILE
    return {KIND: Artifact.of(path)} if path.is_file() else {}
