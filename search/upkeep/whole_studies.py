"""Deletes and renames studies that are not being searched, in slimfront's tables and in Optuna's alike."""

from __future__ import annotations

import shutil

import optuna
from optuna.storages._rdb import models
from sqlalchemy import Table, inspect, select, update
from sqlalchemy.orm import Session

from ...core.errors import StoreError
from ...studies.artifacts.open_store import work_folder
from ...studies.files.study_files import StudyFiles
from ...studies.store.store import Store
from ..optuna.study import open_storage
from ..sole_driver import sole_driver

STUDIES: Table = models.BaseModel.metadata.tables["studies"]


def delete(store: Store, study: str) -> None:
    """Delete a study: its files first, then its rows, so that one that is interrupted can be deleted again.

    Raises:
        StoreError: there is no such study, or it is being searched.
        ArtifactsError: its artifact store cannot be reached.
    """
    store.get_study(study)
    with sole_driver(store, study):
        _delete_files(StudyFiles(store, study))
        storage = open_storage(store)
        if study in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=study, storage=storage)
        store.delete_study(study)


def rename(store: Store, old: str, new: str) -> None:
    """Give a study another name; its files stay where they are.

    Raises:
        StoreError: there is no study of the old name, there is one of the new, or it is being searched.
        StudyFileError: the new name is none that a study file may have.
    """
    store.get_study(old)
    with sole_driver(store, old):
        store.rename_study(old, new, _rename_in_optuna)


def _delete_files(files: StudyFiles) -> None:
    for number, kind in files.held():
        files.remove(number, [kind])
    if files.place is None:
        return
    files.contents.remove()
    folder = work_folder(files.place.root, files.place.prefix)
    if folder.is_dir() and not any(
        folder.glob("objects-*/*")
    ):  # or a study of this name in another database uses it too
        shutil.rmtree(folder)


def _rename_in_optuna(session: Session, old: str, new: str) -> None:
    if not inspect(session.connection()).has_table(STUDIES.name):
        return  # no study was searched yet
    if session.scalar(select(STUDIES.c.study_id).where(STUDIES.c.study_name == new)) is not None:
        raise StoreError(f"Optuna has a study {new!r} in this database already")
    session.execute(update(STUDIES).where(STUDIES.c.study_name == old).values(study_name=new))
