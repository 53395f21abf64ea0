"""Tables and sparklines for the terminal, all built from plain text: what users named is never read as markup."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

SPARKS = "▁▂▃▄▅▆▇█"

UNCUT = 10_000
"""Columns of what is no terminal: every line is as long as it needs to be."""

_PLAIN = {**dict(zip(SPARKS, "_.:-=+*#", strict=True)), "±": "+-", "…": "..", "—": "-", "–": "-", "−": "-", "×": "x"}
_PLAIN |= {chr(code): "*" for code in (0x2022, *range(0x2800, 0x2900))}  # bullets, and the spinner of rich
_PLAIN |= {"━": "-", "╸": "-", "╺": "-", "─": "-"}


def open_console(*, stderr: bool = False) -> Console:
    """The terminal; or a pipe or a file, whose lines are never broken unless COLUMNS says where."""
    stream = sys.stderr if stderr else sys.stdout
    natural = not stream.isatty() and "COLUMNS" not in os.environ
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


def rows_table(header: Sequence[str], rows: Iterable[Sequence[str]] = (), *, narrow: bool = False) -> Table:
    """A table; a header that ends in ">" is of numbers, right-aligned. No word is cut: one that is too long is broken.

    Args:
        narrow: break cells of numbers too where the terminal is too narrow, instead of only those of words.
    """
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    for name in header:
        numbers = name.endswith(">")
        justify = "right" if numbers else "left"
        table.add_column(
            Text(name.removesuffix(">")), justify=justify, no_wrap=numbers and not narrow, overflow="fold"
        )
    for row in rows:
        add_row(table, row)
    return table


def add_row(table: Table, cells: Iterable[str], style: str = "") -> None:
    """Add a row of plain text."""
    table.add_row(*(Text(cell) for cell in cells), style=style)


def facts(pairs: Iterable[tuple[str, str]]) -> Padding:
    """Names and what is known of them, one below the other."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    return Padding(table, (0, 0, 0, 2), expand=False)


def commands(title: str, lines: Iterable[tuple[str, str]]) -> Text:
    """Commands to type next, with what they do."""
    lines = list(lines)
    width = max((len(command) for command, _ in lines), default=0)
    text = Text(f"\n{title}", style="bold")
    for command, meaning in lines:
        text.append(f"\n  {command:{width}}  {meaning}", style="not bold")
    return text


def sparkline(values: Sequence[float | None]) -> str:
    """One character per value, low to high as the values' own range; a blank where there is none yet."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    top = len(SPARKS) - 1
    return "".join(" " if v is None else SPARKS[round((v - low) / span * top) if span else top] for v in values)
