"""Optuna's storage in the store's database: it reads trials by column, and writes what belongs together in one transaction.

Optuna's own writes each parameter and each attribute in a transaction of its own, 90 of them for a trial of 60 knobs.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from optuna._typing import JSONSerializable
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, insert

from ...studies.store.database import connect_waits, database_url
from ...studies.store.patience import Patience, patient
from ...studies.store.store import Store
from .trial_rows import read_trial, read_trials


class ColumnStorage(RDBStorage):
    """Optuna's storage that reads trials by column.

    Attributes:
        patience: how calls wait where the database does not answer now.
    """

    patience = Patience()

    def get_trial(self, trial_id: int) -> FrozenTrial:
        found = read_trial(self.engine, trial_id)
        return found if found is not None else super().get_trial(trial_id)  # which raises

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        trials = read_trials(self.engine, study_id, trial_id_greater_than, included_trial_ids)
        if not trials:
            self.get_study_name_from_id(study_id)  # raises where there is no such study
        return [trial for trial in trials if states is None or trial.state in states]


_TRANSACTIONS = (
    *BaseStorage.__abstractmethods__, "_create_new_trial", "_get_trials", "_set_trial_param",
    "get_trial_system_attrs", "get_trial_id_from_study_id_trial_number",
)  # fmt: skip
"""The methods of a backend that `StudyStorage` and what it inherits call, each a transaction of its own."""

for _name in _TRANSACTIONS:
    setattr(ColumnStorage, _name, patient(getattr(ColumnStorage, _name)))


@dataclass
class _Held:
    """What is to be written at the end of `StudyStorage.together`."""

    parameters: list[dict[str, Any]] = field(default_factory=list)
    attributes: list[tuple[type, int, str, Any]] = field(default_factory=list)


class StudyStorage(_CachedStorage):
    """The storage of a search's driver. Not to be shared between threads.

    What has ended is kept in memory, as `_CachedStorage` does; what has not is found without a look at the rest.
    """

    _backend: ColumnStorage

    def __init__(self, backend: ColumnStorage) -> None:
        super().__init__(backend)
        self._held: _Held | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write parameters and attributes of trials that are set within in one transaction at the end; none after an exception."""
        held = self._held = _Held()
        try:
            yield
        finally:
            self._held = None
        self._write(held)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
        known = self._studies[study_id].param_distribution.get(param_name)
        if self._held is None or known is None:  # the first of a name is compared with what the database has
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        else:
            check_distribution_compatibility(known, distribution)
            self._held.parameters.append({
                "trial_id": trial_id, "param_name": param_name, "param_value": param_value_internal,
                "distribution_json": distribution_to_json(distribution),
            })  # fmt: skip

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if self._held is None:
            super().set_trial_user_attr(trial_id, key, value)
        else:
            self._held.attributes.append((models.TrialUserAttributeModel, trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: JSONSerializable) -> None:
        if self._held is None:
            super().set_trial_system_attr(trial_id, key, value)
        else:
            self._held.attributes.append((models.TrialSystemAttributeModel, trial_id, key, value))

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        return self._backend.get_trial_system_attrs(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states is None or any(state.is_finished() and state in states for state in TrialState):
            return super().get_all_trials(study_id, deepcopy, states)
        self._read_trials_from_remote_storage(study_id)
        numbers = (self._trial_id_to_study_id_and_number[each] for each in self._studies[study_id].unfinished_trial_ids)
        unfinished = (self._studies[study_id].trials[number] for _, number in sorted(numbers))
        return [trial for trial in unfinished if trial.state in states]

    def _write(self, held: _Held) -> None:
        if held.parameters or held.attributes:
            self._backend.patience.outlast(lambda: self._write_at_once(held))

    def _write_at_once(self, held: _Held) -> None:
        with self._backend.scoped_session() as session, session.begin():
            if held.parameters:
                session.execute(insert(models.TrialParamModel), held.parameters)
            for attribute in held.attributes:
                self._backend._set_trial_attr_without_commit(session, *attribute)


def open_storage(store: Store) -> ColumnStorage:
    """Optuna's storage in the store's database; on SQLite with the same journal settings, or it writes half as fast.

    It writes only while the store holds the leases it took, and waits for the database as the store does; its errors are the store's.
    """
    sqlite = store.url.startswith("sqlite")
    waits = {"timeout": 30} if sqlite else connect_waits(database_url(store.url))
    storage = ColumnStorage(store.url, engine_kwargs={"connect_args": waits, "pool_pre_ping": not sqlite})
    storage.patience = store.patience
    store.watch(storage.engine)
    if sqlite:
        event.listen(storage.engine, "connect", _fast_sqlite)
        storage.engine.dispose()  # connections opened before the listener
    return storage


def _fast_sqlite(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
