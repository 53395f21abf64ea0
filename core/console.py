"""Output to a terminal, a pipe or a file, in whatever encoding it has, and what a long computation is at."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from functools import cache

from rich.console import Console

Doing = Callable[[str], None]
"""What a long computation calls before each of its parts, with what begins: "proving that groups can be pruned"."""

UNCUT = 10_000
"""The width of pipes and files, so large that no line is broken."""

_PLAIN = {**dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True)), "±": "+-", "…": "..", "—": "-"}
_PLAIN |= {chr(code): "*" for code in range(0x2800, 0x2900)}  # the spinner of rich is of Braille characters


def unsaid(_: str) -> None:
    """The `Doing` of a caller that shows nothing."""


@cache
def open_console(*, stderr: bool = False) -> Console:
    """Stdout or stderr: the terminal, or a pipe or file whose lines are never broken unless COLUMNS says where.

    The same one for all: progress bars that are shown at the same time must share a console.
    """
    stream = sys.stderr if stderr else sys.stdout
    natural = not stream.isatty() and not os.environ.get("COLUMNS")
    return Console(stderr=stderr, emoji=False, width=UNCUT if natural else None)


def write_in_any_encoding() -> None:
    """Have stdout and stderr take any text: what their encoding lacks is written in plain characters, or as its code."""
    codecs.register_error("slimfront-plain", _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="slimfront-plain")


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    """A handler of `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    refused = error.object[error.start : error.end]
    codes = (_PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in refused)
    return "".join(codes), error.end
