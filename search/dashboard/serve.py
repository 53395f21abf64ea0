"""optuna-dashboard over the store's database, served read-only."""

from __future__ import annotations

import io
import logging
import socket
import sys
from collections.abc import Sequence
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import moocore
import numpy as np
import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import _app as dashboard_app
from optuna_dashboard import wsgi
from rich.console import Console

from ...core.errors import StoreError, UserError
from ...studies.store.store import Store
from ..optuna.storage import open_storage
from .page import quicken
from .publish import FILES, layers_csv
from .read_only import LOCAL_HOSTS, READ_ONLY, App, guarded, known_hosts

REQUEST_TIMEOUT_S = 30
"""The seconds after which an unfinished request is dropped."""


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
