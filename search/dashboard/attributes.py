"""Notes and figures of a study as the dashboard reads them: attributes of the study in Optuna's tables, in parts.

optuna-dashboard's own functions write the same. Importing it imports scikit-learn, which no search should wait for.
"""

from __future__ import annotations

import optuna

MOST_CHARACTERS = 2045
"""The most characters of an attribute, which databases may limit."""


def save_note(study: optuna.Study, trial_id: int | None, text: str) -> None:
    """Save the note, in Markdown, of a trial, or of the study where that is None."""
    key = "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"
    version = _attributes(study).get(f"{key}note_ver", 0) + 1
    study._storage.set_study_system_attr(study._study_id, f"{key}note_ver", version)
    _save_parts(study, f"{key}note_str:", text)


def save_figure(study: optuna.Study, identity: str, document: str) -> None:
    """Save a figure of plotly's as JSON; one of that identity, a valid HTML id, is replaced."""
    _save_parts(study, f"dashboard:plot_data:{identity}:", document)


def _save_parts(study: optuna.Study, key: str, text: str) -> None:
    """Save a text under `key` and a number from 0; of a longer one before it, the parts that are left are emptied."""
    parts = [text[start : start + MOST_CHARACTERS] for start in range(0, len(text), MOST_CHARACTERS)]
    before = sum(name.startswith(key) for name in _attributes(study))
    for number, part in enumerate([*parts, *[""] * (before - len(parts))]):
        study._storage.set_study_system_attr(study._study_id, f"{key}{number}", part)


def _attributes(study: optuna.Study) -> dict:
    return study._storage.get_study_system_attrs(study._study_id)
