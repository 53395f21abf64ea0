"""A study's page in the dashboard, kept up to date while it is searched.

Its note and figures, and the notes of trials, are study attributes in Optuna's tables, which the dashboard reads
as a whole at every refresh: only trials of the front get a note, and everything stays small.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import optuna

from ...core.interrupts import uninterrupted
from ...studies.analysis.newest_front import front_points, objectives_of
from ...studies.analysis.verdict import verdict
from ...studies.reports.figures import front_figure
from ...studies.reports.heatmap import policy_heatmap
from ...studies.reports.notes import study_note, trial_note
from ...studies.reports.sensitivity_figure import sensitivity_heatmap
from ...studies.store.records import TrialRecord
from ...studies.wording import channel_rows, layer_rows
from ..events import Event, StageRecorded, TrialStarted
from .attributes import save_figure, save_note

if TYPE_CHECKING:
    from ..driver import Search  # for annotations only: serving imports this module too, and needs no torch

INTERVAL_S = 10.0
"""The least time in seconds between two publications of a running search."""

PAUSE_FACTOR = 50
"""A publication is followed by at least this multiple of its duration without one."""

FILES = (("policy.json", "application/json"), ("layers.csv", "text/csv"))
"""The files of a trial on the front: name and MIME type."""


def layers_csv(trial: TrialRecord) -> str:
    """What a trial's policy changes, a row per layer and channel group."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("name", "weight_bits", "activation_bits", "weight_sparsity", "channels_removed", "channels_kept"))
    writer.writerows((*row, "", "") for row in layer_rows(trial.policy))
    writer.writerows((group, "", "", "", removed, kept) for group, removed, kept in channel_rows(trial.policy))
    return text.getvalue()


def publish(search: Search) -> None:
    """Bring the study's page up to date now."""
    Publisher(search).publish(force=True)


class Publisher:
    """Keeps a study's page up to date while it is searched; call `publish` as often as you like.

    What has not changed since it was last written here is not written again.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._study = search.optuna.optuna_study
        self._due = time.monotonic()
        self._written: dict[str, str] = {}

    def hear(self, event: Event) -> None:
        """An `events.Listener`: publishes now and then."""
        if not isinstance(event, StageRecorded | TrialStarted):
            self.publish()

    @uninterrupted()
    def publish(self, force: bool = False) -> bool:
        """Write note, figures and the front's trial notes, unless that was done a moment ago and `force` is not set.

        Returns:
            Whether it was time to.
        """
        started = time.monotonic()
        if not force and started < self._due:
            return False
        self._publish()
        ended = time.monotonic()
        self._due = ended + max(INTERVAL_S, PAUSE_FACTOR * (ended - started))
        return True

    def _publish(self) -> None:
        store, prepared = self._search.store, self._search.prepared
        study = store.get_study(self._search.spec.study)
        trials, front, points = store.trials(study.name), store.current_front(study.name), front_points(store, study)
        members = [trial for trial in trials if front is not None and trial.number in front.members]
        note = study_note(study, trials, front, points, verdict(store, study.name))
        self._write("note", note, lambda text: save_note(self._study, None, text))
        self._save_figure("front", front_figure(study, trials, [trial.number for trial in members]))
        if members:
            names = [layer.name for layer in prepared.layers], [group.name for group in prepared.groups]
            self._save_figure("policies", policy_heatmap(members, objectives_of(study)[0], *names))
        if sensitivities := store.sensitivities(study.name):
            self._save_figure("sensitivity", sensitivity_heatmap(sensitivities))
        for trial in members:
            number = trial.number
            self._write(
                f"note {number}", trial_note(trial), lambda text, n=number: _save_trial_note(self._search, n, text)
            )
            self._write(f"files {number}", "", lambda _, n=number: _offer_files(self._search, n))

    def _save_figure(self, name: str, figure: Any) -> None:
        identity = f"slimfront-{name}"
        self._write(identity, figure.to_json(), lambda text: save_figure(self._study, identity, text))

    def _write(self, key: str, content: str, save: Callable[[str], object]) -> None:
        if self._written.get(key) != content:
            save(content)
            self._written[key] = content


def _save_trial_note(search: Search, number: int, text: str) -> None:
    study = search.optuna.optuna_study
    save_note(study, _trial_id(study, number), text)


def _offer_files(search: Search, number: int) -> None:
    """Have the dashboard list `FILES` on a trial's page; `TrialFiles` hands them out.

    In the attribute of the study where the dashboard's own uploads were: those of a trial that has ended cannot be set.
    """
    study = search.optuna.optuna_study
    trial_id = _trial_id(study, number)
    for index, (name, mimetype) in enumerate(FILES):
        identity = f"{study._study_id}-{number}-{index}"
        meta = {"artifact_id": identity, "filename": name, "mimetype": mimetype, "encoding": None}
        study._storage.set_study_system_attr(
            study._study_id, f"dashboard:artifacts:{trial_id}:{identity}", json.dumps(meta)
        )


def _trial_id(study: optuna.Study, number: int) -> int:
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
