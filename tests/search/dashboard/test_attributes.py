"""Notes and figures are written as optuna-dashboard's own functions write them."""

import optuna
import pytest
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from plotly import graph_objects
from slimfront.search.dashboard import attributes

LENGTHS = (5000, 2046, 2045, 0, 3)


@pytest.fixture
def studies() -> list[optuna.Study]:
    return [optuna.create_study(storage=optuna.storages.InMemoryStorage()) for _ in range(2)]


def written(study: optuna.Study) -> dict:
    return study._storage.get_study_system_attrs(study._study_id)


def test_notes_are_those_of_the_dashboards_own_function(studies: list[optuna.Study]) -> None:
    ours, theirs = studies
    number, trial = ours.ask()._trial_id, theirs.ask()
    for length in LENGTHS:
        note = "n" * length
        attributes.save_note(ours, None, note)
        attributes.save_note(ours, number, note[::2])
        save_note(theirs, note)
        save_note(trial, note[::2])
        assert written(ours) == written(theirs)
        assert get_note(ours) == note


def test_figures_are_those_of_the_dashboards_own_function(studies: list[optuna.Study]) -> None:
    ours, theirs = studies
    for length in LENGTHS:
        figure = graph_objects.Figure(layout={"title": {"text": "f" * length}})
        attributes.save_figure(ours, "slimfront-front", figure.to_json())
        save_plotly_graph_object(theirs, figure, graph_object_id="slimfront-front")
        assert written(ours) == written(theirs)
