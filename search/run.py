"""A search from its spec to its confirmed front, with progress on the console."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..hardware_profiles.fingerprint import saturates
from ..interrupts import sigterm_interrupts
from ..studies.spec import StudySpec
from ..studies.store import Store
from .artifacts_folder import require_writable
from .confirm import confirm_front
from .dashboard import Publisher
from .driver import Search
from .local import run_local
from .lock import sole_driver
from .problem import prepare


@sigterm_interrupts()
def run_search(spec: StudySpec, storage: str, artifacts: Path, console: Console) -> None:
    """Run or continue the study, confirm its front, and publish it to the dashboard.

    Raises:
        UserError: bad input; nothing was written where it was found before the study began.
        KeyboardInterrupt: Ctrl-C; everything finished is stored.
    """
    require_writable(artifacts.resolve() / spec.study)
    if spec.workers:
        from .cluster import require_answer  # only here: importing ray takes a second

        require_answer()
    problem = prepare(spec)
    for group, reason in problem.unprunable.items():
        console.print(f"  channels of {group} stay: {reason}", style="dim", highlight=False)
    console.print(
        f"  {len(problem.layers)} layers, {len(problem.groups)} channel groups, {len(problem.space.knobs)} knobs; "
        f"target {problem.target.name}; measuring the uncompressed model",
        highlight=False,
    )
    if problem.target.predict and problem.target.latency_table is not None:
        table = problem.target.latency_table
        console.print(
            f"  latency is predicted by the table in the target's card (median error {table.error:.1%}), not measured",
            style="yellow",
            highlight=False,
        )
    with Store(storage) as store, sole_driver(store, spec.study), SearchProgress(spec, console) as progress:
        search = Search(problem, store, artifacts, progress.tell)
        publisher = Publisher(search)
        progress.follow(search, publisher)
        _warn_of_a_noisy_machine(search, console)
        _warn_of_saturation(search, console)
        try:
            if spec.workers:
                from .distributed import run_distributed  # only here: importing ray takes a second

                run_distributed(search, spec.workers)
            else:
                run_local(search, isolated=True)
            confirm_front(search, progress.confirming)
        finally:
            publisher.publish(force=True)


def _warn_of_a_noisy_machine(search: Search, console: Console) -> None:
    """Say so where the uncompressed model, timed against itself, is told apart from itself."""
    against_itself = search.store.get_study(search.spec.study).baseline["speedup"]
    if not against_itself.low <= 1 <= against_itself.high:
        console.print(
            f"  this machine was busy: the uncompressed model measured {against_itself.value:.3f}x as fast as itself; "
            "latencies of this study carry that error",
            style="yellow",
            highlight=False,
        )


def _warn_of_saturation(search: Search, console: Console) -> None:
    """Say so where the machine computes 8-bit layers otherwise than most others would."""
    choices, runtime = search.problem.space.choices, search.problem.target.runtime
    offered = 8 in choices.weight_bits and 8 in choices.activation_bits
    if offered and saturates(search.store.get_study(search.spec.study).machine, runtime):
        console.print(
            f"  this processor has no VNNI: sums of 8-bit weights times 8-bit activations overflow in {runtime}'s kernels; "
            "accuracies are those of such processors, see docs/targets.md",
            style="yellow",
            highlight=False,
        )


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
