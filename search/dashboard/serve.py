"""optuna-dashboard over the store's database: serving it, and publishing a study's note, figures and files to it.

A study's note and figures, and the notes of trials, are study attributes in Optuna's tables, which the dashboard reads
as a whole at every refresh: only trials of the front get a note, and everything stays small.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import moocore
import numpy as np
import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import _app as dashboard_app
from optuna_dashboard import save_note, save_plotly_graph_object, wsgi
from rich.console import Console

from ...core.errors import StoreError, UserError
from ...core.interrupts import uninterrupted
from ...studies.analysis.newest_front import front_points, objectives_of
from ...studies.analysis.verdict import verdict
from ...studies.reports.figures import front_figure
from ...studies.reports.heatmap import policy_heatmap
from ...studies.reports.notes import study_note, trial_note
from ...studies.reports.sensitivity_figure import sensitivity_heatmap
from ...studies.store.records import TrialRecord
from ...studies.store.store import Store
from ...studies.wording import channel_rows, layer_rows
from ..events import Event, StageRecorded, TrialStarted
from ..optuna.storage import open_storage
from .page import quicken
from .read_only import LOCAL_HOSTS, READ_ONLY, App, guarded, known_hosts

if TYPE_CHECKING:
    from ..driver import Search  # for annotations only: it imports torch, which serving does not need

INTERVAL_S = 10.0
"""The least time in seconds between two publications of a running search."""

PAUSE_FACTOR = 50
"""A publication is followed by at least this multiple of its duration without one."""

REQUEST_TIMEOUT_S = 30
"""The seconds after which an unfinished request is dropped."""

FILES = (("policy.json", "application/json"), ("layers.csv", "text/csv"))
"""The files of a trial on the front: name and MIME type."""


# Serving


def serve(
    store: Store, name: str | None, host: str, port: int, console: Console, also_known_as: Sequence[str] = ()
) -> None:
    """Serve the dashboard, read-only, until Ctrl-C.

    Args:
        name: the study whose page is announced; all are served.
        host: address to listen on.
        also_known_as: host names that browsers may use for it, in addition to those of this machine.

    Raises:
        StoreError: there is no such study.
        UserError: the address cannot be listened on.
    """
    if name is not None:
        store.get_study(name)
    storage = open_storage(store)
    app = guarded(dashboard_of(store, storage), known_hosts(host, also_known_as))
    with _listen(host, port, app) as server:
        if host not in LOCAL_HOSTS:
            warning = (
                f"the dashboard has no authentication: anyone who reaches {host}:{port} can read every study in it; "
                "it answers to IP addresses, this machine's names and those that it was given"
            )
            console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}{_path(storage, name)}"
        console.print(f"dashboard at {url}; Ctrl-C ends it", highlight=False, markup=False, soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("dashboard ended")


def dashboard_of(store: Store, storage: RDBStorage) -> App:
    """optuna-dashboard over the store's database, which separates infeasible trials from best ones and answers quickly."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna_dashboard").setLevel(logging.ERROR)
    # The dashboard calls infeasible trials best ones too (optuna-dashboard issue 772) and has no option for it.
    dashboard_app.get_pareto_front_trials = feasible_front
    quicken()
    return wsgi(storage, artifact_store=TrialFiles(store, storage))


def feasible_front(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The trials that meet their constraints and that no other such trial dominates."""
    feasible = [trial for trial in trials if _is_feasible(trial)]
    if not feasible:
        return []
    signs = [-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in directions]
    kept = moocore.is_nondominated(np.array([trial.values for trial in feasible]) * signs, keep_weakly=True)
    return [trial for trial, keep in zip(feasible, kept, strict=True) if keep]


def _is_feasible(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and all(excess <= 0 for excess in trial.constraints.values())


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per request, none of which keeps the process alive."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away or fell silent is nothing to report
            super().handle_error(request, client_address)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    """Logs no requests, and drops those that do not finish."""

    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _listen(host: str, port: int, app: App) -> WSGIServer:
    kind = _Server6 if ":" in host else _Server
    try:
        return make_server(host, port, app, server_class=kind, handler_class=_QuietHandler)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise UserError(f"cannot listen on {host}:{port}: {problem}; try another port or host") from error


def _path(storage: RDBStorage, name: str | None) -> str:
    """The page of a study; the list of all where its search has not got as far as Optuna yet."""
    try:
        return "/dashboard" if name is None else f"/dashboard/studies/{storage.get_study_id_from_name(name)}"
    except KeyError:
        return "/dashboard"


class TrialFiles:
    """An artifact store for the dashboard that writes a trial's files when they are asked for; nothing is stored twice.

    An id is OPTUNA_STUDY_ID-TRIAL_NUMBER-INDEX, the index into `FILES`.
    """

    def __init__(self, store: Store, storage: RDBStorage) -> None:
        self._store, self._storage = store, storage

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The file's content.

        Raises:
            ArtifactNotFound: no such id, study or trial.
        """
        try:
            study_id, number, index = map(int, artifact_id.split("-"))
            trial = self._store.get_trial(self._storage.get_study_name_from_id(study_id), number)
            file, _ = FILES[index]
        except (ValueError, KeyError, IndexError, StoreError) as error:
            raise ArtifactNotFound(artifact_id) from error
        return io.BytesIO((trial.policy_json if file == "policy.json" else layers_csv(trial)).encode())

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Refused: the dashboard is read-only."""
        raise PermissionError(READ_ONLY)

    def remove(self, artifact_id: str) -> None:
        """Refused: the dashboard is read-only."""
        raise PermissionError(READ_ONLY)


def layers_csv(trial: TrialRecord) -> str:
    """What a trial's policy changes, a row per layer and channel group."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("name", "weight_bits", "activation_bits", "weight_sparsity", "channels_removed", "channels_kept"))
    writer.writerows((*row, "", "") for row in layer_rows(trial.policy))
    writer.writerows((group, "", "", "", removed, kept) for group, removed, kept in channel_rows(trial.policy))
    return text.getvalue()


# Publishing


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
        self._write("note", note, lambda text: save_note(self._study, text))
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
        save = lambda _: save_plotly_graph_object(self._study, figure, graph_object_id=identity)  # noqa: E731
        self._write(identity, figure.to_json(), save)

    def _write(self, key: str, content: str, save: Callable[[str], object]) -> None:
        if self._written.get(key) != content:
            save(content)
            self._written[key] = content


def _save_trial_note(search: Search, number: int, text: str) -> None:
    study = search.optuna.optuna_study
    # `save_note` takes a trial that may still run; the note itself is an attribute of the study.
    save_note(optuna.Trial(study, _trial_id(study, number)), text)


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
