"""Study files by path or by name: those of a user, and those that come with slimfront."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from ...core.documents import MAX_YAML_BYTES, read_file, yaml_document
from ...core.errors import DocumentError, StudyFileError
from ...core.validation import shortened, suggestion
from .spec import StudySpec

_LIBRARY = resources.files("slimfront.studies").joinpath("library")

MAX_NAME = 300
"""Characters of a file's name that errors show."""


def shipped_studies() -> list[str]:
    """Names of the study files that come with slimfront."""
    files = (file.name for file in _LIBRARY.iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_study(reference: str) -> StudySpec:
    """The study of a file, or of a shipped one by its name.

    Args:
        reference: path of a study file, or one of `shipped_studies()`.

    Raises:
        StudyFileError: no such file, or the first thing wrong with it.
    """
    path = Path(reference)
    if reference in shipped_studies() and not path.is_file():
        with resources.as_file(_LIBRARY.joinpath(f"{reference}.yaml")) as shipped:
            return StudySpec.from_document(_read_mapping(shipped, reference), reference, Path.cwd())
    name = shortened(reference, MAX_NAME)
    if not os.path.exists(reference):
        raise StudyFileError(
            name, "", f"no such file, and no shipped study; {suggestion(reference, shipped_studies())}"
        )
    return StudySpec.from_document(_read_mapping(path, name), reference, path.resolve().parent)


def study_named(reference: str) -> StudySpec | None:
    """The study of a file or a shipped one; None where `reference` is neither's name and so may be a workload's.

    Raises:
        StudyFileError: as `load_study`.
    """
    is_study = reference in shipped_studies() or Path(reference).suffix in (".yaml", ".yml")
    return load_study(reference) if is_study else None


def _read_mapping(path: Path, name: str) -> dict[Any, Any]:
    """The one mapping a YAML file holds; `name` is how errors call the file."""
    try:
        document = yaml_document(read_file(path, MAX_YAML_BYTES))
    except DocumentError as error:
        raise StudyFileError(f"{name}:{error.line}" if error.line else name, "", str(error)) from error
    if not isinstance(document, dict):
        held = "is empty" if document is None else f"holds a {type(document).__name__}"
        raise StudyFileError(name, "", f"{held}; a study file is a mapping of keys such as study, workload, target")
    return document
