"""Tables and sparklines for the terminal, and results that print as such, all built from plain text: what users named is never read as markup, emoji or
terminal codes."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.jupyter import JupyterMixin
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.console import UNCUT
from ..core.texts import plain_text

LONGEST_CELL = 10_000
"""Characters of any one text; what is stored now is shorter, what older versions stored need not be."""

SPARKS = "▁▂▃▄▅▆▇█"


class Shown(JupyterMixin, ABC):
    """A result that prints as its command does: in a terminal by `rich.print`, in a notebook, and as plain text by `print`."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The document that the command prints with `--format json`, of plain JSON values."""

    @abstractmethod
    def __rich__(self) -> RenderableType:
        """What the command prints."""

    def __str__(self) -> str:
        plain = Console(width=UNCUT, file=io.StringIO())
        with plain.capture() as printed:
            plain.print(self)
        return "".join(f"{line.rstrip()}\n" for line in printed.get().splitlines())


def rows_table(header: Sequence[str], rows: Iterable[Sequence[str]] = (), *, narrow: bool = False) -> Table:
    """A table; a header that ends in ">" is of numbers, right-aligned. No word is cut: one that is too long is broken.

    Args:
        narrow: break cells of numbers too where the terminal is too narrow, instead of only those of words.
    """
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    for name in header:
        numbers = name.endswith(">")
        justify = "right" if numbers else "left"
        table.add_column(Text(name.removesuffix(">")), justify=justify, no_wrap=numbers and not narrow, overflow="fold")
    for row in rows:
        add_row(table, row)
    return table


def add_row(table: Table, cells: Iterable[str], style: str = "") -> None:
    """Add a row of plain text."""
    table.add_row(*map(words, cells), style=style)


def words(text: str, style: str = "") -> Text:
    """A text from anywhere, as it stands."""
    return Text(plain_text(text, LONGEST_CELL), style=style)


class Fitting:
    """The one of two renderables that fits: the wide one, or the narrow one where the wide one's words would be broken."""

    def __init__(self, wide: RenderableType, narrow: RenderableType) -> None:
        self._wide, self._narrow = wide, narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update(max_width=UNCUT), self._wide).minimum
        yield self._wide if needed <= options.max_width else self._narrow


def facts(pairs: Iterable[tuple[str, str]]) -> Padding:
    """Names and what is known of them, one below the other."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, value in pairs:
        table.add_row(words(name), words(value))
    return Padding(table, (0, 0, 0, 2), expand=False)


def commands(title: str, lines: Iterable[tuple[str, str]]) -> Text:
    """Commands to type next, with what they do."""
    lines = list(lines)
    width = max((len(command) for command, _ in lines), default=0)
    text = Text(f"\n{title}", style="bold")
    for command, meaning in lines:
        text.append(words(f"\n  {command:{width}}  {meaning}", style="not bold"))
    return text


def sparkline(values: Sequence[float | None]) -> str:
    """One character per value, low to high as the values' own range; a blank where there is none yet."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    top = len(SPARKS) - 1
    return "".join(" " if v is None else SPARKS[round((v - low) / span * top) if span else top] for v in values)
