"""Writes the pages that follow from the program: cli.md and metrics.md. `make docs` runs it, a test compares."""

from pathlib import Path

import typer
from slimfront.cli import app
from slimfront.core.metrics import METRICS
from typer.cli import get_docs_for_click

FOLDER = Path(__file__).parent


def cli_page() -> str:
    """The commands and their options."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="slimfront", title="Command line")
    return f"{text.strip()}\n"


def metrics_page() -> str:
    """Every metric that objectives, constraints and reports name."""
    rows = [f"| `{m.name}` | {m.unit} | {m.direction} | {m.phase} | {m.meaning} |" for m in METRICS.values()]
    head = ["# Metrics", "", "| name | unit | direction | first known when | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


PAGES = {"cli.md": cli_page, "metrics.md": metrics_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
