"""Targets: how fast they are, and which there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.defaults import DEFAULT_STORAGE
from ..core.documents import write_file
from ..studies.terminal import Shown
from .shown import progress_console

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ..hardware_profiles.cards.target import Target


@dataclass(frozen=True)
class Profile(Shown):
    """What is known of a target; its card is a template before it was measured."""

    target: Target

    def to_dict(self) -> dict[str, Any]:
        """The document that `slimfront profile --format json` prints."""
        from ..studies.reports.profiles import target_document

        return target_document(self.target)

    def save(self, path: str | Path) -> None:
        """Write the card to a file, by which studies name the target.

        Raises:
            UserError: the file cannot be written.
        """
        from ..hardware_profiles.cards.target import card_text

        write_file(Path(path), card_text(self.target))

    def __rich__(self) -> RenderableType:
        from ..studies.reports.profiles import target_report

        return target_report(self.target)


@dataclass(frozen=True)
class Profiles(Shown):
    """The targets that are known, by name."""

    targets: Sequence[Target]

    def to_dict(self) -> dict[str, Any]:
        """The document that `slimfront profiles --format json` prints."""
        from ..studies.reports.profiles import profiles_document

        return profiles_document(self.targets)

    def __rich__(self) -> RenderableType:
        from ..studies.reports.profiles import profiles_table

        return profiles_table(self.targets)


def profile(
    target: str | Path,
    *,
    measure: bool = True,
    table: str | None = None,
    storage: str = DEFAULT_STORAGE,
    progress: bool | Console = True,
) -> Profile:
    """Measure this machine as a target runs it: arithmetic per precision, memory, dispatch, well-known models.

    Takes at most a minute, and lists what it had no time to measure. The card is kept in the database; studies use it by the
    file that `Profile.save` writes.

    Args:
        target: a shipped card's name or a card file.
        measure: whether to measure; without, what is known already is returned.
        table: fit a latency table too, for the model and space of this study: a study file or a shipped study's name.
            Takes minutes.
        storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`.
        progress: whether to show progress on stderr, or the console to show it on.

    Raises:
        UserError: no such card or study, its runtime is not installed, the card is of another machine, or a table is to be fitted to
            several shapes.
    """
    from ..hardware_profiles.cards.target import load_target
    from ..studies.reports.profiles import known_target, measure_target

    if not measure:
        return Profile(known_target(str(target), storage))
    console = progress_console(progress)
    if table is None:
        return Profile(measure_target(str(target), storage, console))
    from ..search.measured_table import add_table, require_one_shape  # imports torch, optuna

    require_one_shape(load_target(str(target)))
    return Profile(add_table(measure_target(str(target), storage, console), table, storage, console))


def profiles(storage: str = DEFAULT_STORAGE) -> Profiles:
    """List the targets: shipped templates, and what was measured of them into a database.

    Args:
        storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`. None is made.
    """
    from ..studies.reports.profiles import known_targets

    return Profiles(list(known_targets(storage).values()))
