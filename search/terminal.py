"""What the terminal shows while a search runs: a bar that goes away, or lines where there is no terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..evaluators.latency import remarks_on_timing
from ..studies.analysis.front import Objective, Point
from ..studies.reference_wording import moments_text, reference_lines
from ..studies.store.records import TrialRecord
from ..studies.store.trial_state import TrialState
from ..studies.study_file.spec import StudySpec
from ..studies.wording import clock_text, count_text, figure_text
from .driver import Search
from .events import (
    ClusterRemarked,
    Event,
    FilesRemade,
    FrontChanged,
    Preparing,
    QuietMomentTaken,
    ReferenceNotMeasured,
    ReferenceSettled,
    SamplerFellBack,
    SensitivityMeasured,
    SensitivityUnmeasured,
    StageRecorded,
    TrainingFound,
    TrialConfirmed,
    TrialFinished,
    TrialStarted,
    TrialUnconfirmed,
)

LINE_INTERVAL_S = 10.0
"""Least time between two lines of progress where there is no terminal."""

PATIENCE_S = 20.0
"""Seconds of preparation after which its parts are worth a line where there is no terminal."""

TRIALS = "trials"
"""What is counted, until the front is measured again."""

CONFIRMED = "points of the front measured again"
"""What is counted from then on."""

BAR_WIDTH = 30
"""Columns of the bar: with what stands next to it they fit 80."""

FEWEST_ENDED = 3
"""Trials that must have ended before the time left is estimated."""

LATEST = 32
"""Trials whose ends the estimate is made from, the newest."""


class Pace:
    """How often trials end, and how long so many more will take at that pace; it holds for any number of workers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[tuple[float, int]] = deque(maxlen=LATEST)

    def note(self, ended: int) -> None:
        """See how many trials have ended by now."""
        if not self._ends or ended > self._ends[-1][1]:
            self._ends.append((self._clock(), ended))

    def left(self, remaining: int) -> float | None:
        """Seconds until `remaining` more trials have ended; None while too few have."""
        if not self._ends:
            return None
        (first, before), (last, ended) = self._ends[0], self._ends[-1]
        if ended - before < FEWEST_ENDED:
            return None
        return max(0.0, remaining * (last - first) / (ended - before) - (self._clock() - last))


class SearchProgress:
    """Trials ended, time left, the front and its best figures; a line for everything worth a line.

    Lines are held back until the study is open, so that a search that is refused shows nothing but the reason.

    Args:
        started: `time.monotonic()` when the command was given, which the time is counted from; now by default.
    """

    def __init__(self, spec: StudySpec, console: Console, started: float | None = None) -> None:
        self._total, self._timeout_s = spec.budget.trials, spec.budget.timeout_s
        self._objectives = spec.objectives
        self._console, self._name = console, spec.study
        self._waiting = console.status(Text(f"{spec.study}: opening the study"))
        self._held: list[Text] | None = []
        self._started, self._printed = time.monotonic() if started is None else started, float("-inf")
        self._pace = Pace()
        self._done, self._what, self._note = 0, TRIALS, ""
        self._search: Search | None = None
        self._live = Live(get_renderable=self._bar, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> SearchProgress:
        self._waiting.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(OSError):  # a terminal that was closed, and why the search ends is what counts
            self._waiting.stop()
            self._live.stop()
        if kind is None and self._search is not None:
            trials, points = count_text(self._search.finished, "trial"), count_text(len(self._search.front), "point")
            self.say(f"{trials} in {clock_text(self._elapsed)}, {points} on the front")

    def say(self, text: str, style: str = "") -> None:
        """Print a line; at once where the study is open."""
        line = Text(f"  {text}", style=style)
        if self._held is None:
            self._console.print(line)
        else:
            self._held.append(line)

    def follow(self, search: Search) -> None:
        """Show this search from now on."""
        self._search = search
        self._open()
        self._update()

    def hear(self, event: Event) -> None:
        """An `events.Listener`."""
        if isinstance(event, Preparing):
            self._prepare(event.what)
            return
        self._open()
        if (line := _line(event, self._objectives)) is not None:
            self.say(*line)
        if isinstance(event, SensitivityMeasured):
            self._count(self._done, f"sensitivity of single choices, {event.measured} of {event.total}")
        elif isinstance(event, TrialConfirmed):
            self._confirming(event)
        elif not isinstance(event, StageRecorded | TrialStarted):
            self._update()

    def _prepare(self, what: str) -> None:
        """Show what precedes the first trial; in a file or pipe as a line, once it takes long: a search that is refused says but why."""
        if self._held is None:
            self._count(self._done, what)
            return
        self._waiting.update(Text(f"{self._name}: {what}"))
        if not self._console.is_interactive and self._elapsed >= PATIENCE_S:
            self._console.print(Text(f"  {clock_text(self._elapsed)}: {what}"))

    def _confirming(self, event: TrialConfirmed) -> None:
        if self._what == TRIALS:
            self._what, self._timeout_s, self._pace = CONFIRMED, None, Pace()
        self._total = event.total
        self._count(event.confirmed, self._note)

    def _open(self) -> None:
        """Print what was held back; from now on every line is printed at once."""
        if self._held is None:
            return
        self._waiting.stop()
        held, self._held = self._held, None
        for line in held:
            self._console.print(line)
        if self._console.is_interactive:
            self._live.start()

    def _update(self) -> None:
        """Look at the search: only here, as the bar is drawn by another thread."""
        if self._search is None:
            return
        if self._what == TRIALS:
            self._done = self._search.finished
            self._pace.note(self._done)
        self._count(self._done, self._front_text(self._search.front))

    def _front_text(self, front: Sequence[Point]) -> str:
        """How large the front is, and the best figure of each objective."""
        best = []
        for index, objective in enumerate(map(Objective.of, self._objectives if front else ())):
            point = min(front, key=lambda point: objective.sign * point.values[index])
            best.append(figure_text(point.measurements[objective.name], spread=False))
        return f"front of {len(front)}, best {', '.join(best)}" if best else "no front yet"

    def _count(self, done: int, note: str) -> None:
        self._done, self._note = done, note
        now = time.monotonic()
        if not self._console.is_interactive and now - self._printed >= LINE_INTERVAL_S:
            self._printed = now
            is_known = (
                self._search is not None or self._what != TRIALS
            )  # or a study that goes on would seem to have no trials
            self.say(f"{self._counted}, {self._times}; {note}" if is_known else f"{clock_text(self._elapsed)}: {note}")

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    @property
    def _counted(self) -> str:
        return f"{self._done} of {self._total} {self._what}" if self._total else f"{self._done} {self._what}"

    @property
    def _times(self) -> str:
        """Time passed, and until the last trial ends: at the pace of trials, or until the timeout, which is the most it can be."""
        parts = [clock_text(self._elapsed)]
        if self._total and self._done >= self._total:
            return parts[0]
        paced = self._pace.left(self._total - self._done) if self._total else None
        most = None if self._timeout_s is None else max(0.0, self._timeout_s - self._elapsed)
        if paced is not None:
            parts.append(f"{clock_text(paced if most is None else min(paced, most))} left")
        elif most is not None:
            parts.append(f"at most {clock_text(most)} left")
        return ", ".join(parts)

    def _bar(self) -> RenderableType:
        total, done = (self._total, self._done) if self._total else (self._timeout_s, self._elapsed)
        row = Table.grid(padding=(0, 1))
        row.add_row(f"  {self._counted}", ProgressBar(total, done, width=BAR_WIDTH), self._times)
        return Group(row, Text(f"  {self._note}"))


def _line(event: Event, objectives: Sequence[str]) -> tuple[str, str] | None:
    """The line that an event is worth, and its style; None for most."""
    if isinstance(event, FrontChanged) and event.joined:
        figures = (figure_text(event.trial.measurements[name]) for name in objectives)
        return f"trial {event.trial.number} joins the front: {', '.join(figures)}", ""
    if isinstance(event, TrialFinished):
        return _line_of_trial(event.trial)
    if isinstance(event, TrialUnconfirmed):
        return f"trial {event.trial} is not confirmed: {event.reason}", "yellow"
    if isinstance(event, FilesRemade):
        words = event.remade.words
        return f"trial {event.trial}: {words[0].lower()}{words[1:]}", "yellow"
    if isinstance(event, SamplerFellBack | SensitivityUnmeasured):
        return event.reason, "yellow"
    if isinstance(event, ClusterRemarked):
        return event.text, "yellow"
    return _line_of_training(event) if isinstance(event, TrainingFound) else _line_of_reference(event)


def _line_of_training(event: TrainingFound) -> tuple[str, str]:
    offered, found = ", ".join(f"{epochs:g}" for epochs in event.epochs), event.found
    line = f"learning rate {found.rate:g} found on the model in {event.seconds:.0f} s; " if event.has_rate else ""
    line += f"recoveries of {offered} epochs, about {found.epoch_s:.2g} s each"
    return line + (f", {found.gain:.1f}x as fast with {' and '.join(found.way)}" if found.way else ""), ""


def _line_of_trial(trial: TrialRecord) -> tuple[str, str] | None:
    """The line of a trial that failed or was lost, or of which the bench has something to say."""
    if trial.state is TrialState.FAILED:
        return f"trial {trial.number} failed: {' '.join((trial.reason or '').split())}", "yellow"
    if trial.state is TrialState.INTERRUPTED:
        return f"trial {trial.number} is tried again: {trial.reason}", "yellow"
    if remarks := remarks_on_timing(trial.measurements):
        return f"trial {trial.number}: {'; '.join(remarks)}", "yellow"
    return None


def _line_of_reference(event: Event) -> tuple[str, str] | None:
    """The line of an event that is about the study's reference."""
    if isinstance(event, ReferenceSettled):
        return "\n  ".join(reference_lines(event.reference, event.is_new)), ""
    if isinstance(event, QuietMomentTaken) and (text := moments_text(event.before, event.now)) is not None:
        return text, "yellow"
    if isinstance(event, ReferenceNotMeasured):
        return f"the reference's latency was not measured again: {event.reason}; milliseconds stay", "yellow"
    return None
