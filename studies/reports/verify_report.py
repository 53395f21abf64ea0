"""What `slimfront verify` prints: each claim of a card next to what was found here."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..bundles.verify import Check
from ..terminal import add_row, rows_table

WIDEST = 24
"""The most characters of a finding in the table; longer ones are printed below it."""

VERDICTS = {True: "holds", False: "DIFFERS", None: "not checked"}


def checks_report(checks: Sequence[Check]) -> RenderableType:
    """The checks as a table, with what is too long for it below."""
    table = rows_table(("claim", "card>", "here>", "allowed>", ""))
    for check in checks:
        found = check.found if len(check.found) <= WIDEST else "see below"
        add_row(table, (check.claim, check.recorded, found, check.allowed, VERDICTS[check.holds]))
    return Group(table, *(Text(f"{check.claim}: {check.found}") for check in checks if len(check.found) > WIDEST))
