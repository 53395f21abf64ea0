"""What the terminal shows while a search runs."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..studies.spec import StudySpec
from .dashboard import Publisher
from .driver import Search


class SearchProgress:
    """A progress bar with trials, front size and hypervolume, and a line for everything worth a line."""

    def __init__(self, spec: StudySpec, console: Console) -> None:
        self._total = spec.budget.trials
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), console=console,
        )  # fmt: skip
        self._search: Search | None = None
        self._publisher: Publisher | None = None

    def __enter__(self) -> SearchProgress:
        self._progress.start()
        self._task = self._progress.add_task("trials", total=self._total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def follow(self, search: Search, publisher: Publisher) -> None:
        """Show this search from now on, and have its page on the dashboard kept up to date."""
        self._search, self._publisher = search, publisher
        self._update()

    def tell(self, event: str, number: int, text: str) -> None:
        """A `driver.Listener`."""
        if event == "front" and self._search is not None:
            point = self._search.store.get_trial(self._search.spec.study, number)
            values = ", ".join(f"{name} {point.measurements[name].value:.4g}" for name in self._search.spec.objectives)
            self._console.print(f"  trial {number} joins the front: {values}", highlight=False)
        elif event in ("fallback", "unmeasured"):
            self._console.print(f"  {text}", style="yellow", highlight=False, markup=False)
        elif event == "sensitivity":
            self._progress.update(self._task, note=f"sensitivity {text}")
        elif event == "failed":
            self._console.print(f"  trial {number} failed: {text}", style="yellow", highlight=False, markup=False)
        if event != "stage":
            self._update()
            if self._publisher is not None:
                self._publisher.publish()

    def confirming(self, done: int, total: int) -> None:
        """Progress of `confirm_front`."""
        self._progress.update(self._task, description="confirming the front", completed=done, total=total)

    def _update(self) -> None:
        if self._search is not None:
            note = f"front {len(self._search.front)}, hypervolume {self._search.hypervolume:.4g}"
            self._progress.update(self._task, completed=self._search.finished, note=note)
