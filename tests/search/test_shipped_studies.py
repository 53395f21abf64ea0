"""The shipped studies of every family are searched from their file to a confirmed front."""

from pathlib import Path

import pytest
from rich.console import Console
from slimfront.search.run import run_search
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.load import load_study


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), [("digits-vit", "transformer"), ("digits-gru", "recurrent")])
def test_a_few_trials_end_in_a_front_that_was_timed_and_tested(name: str, family: str, tmp_path: Path) -> None:
    spec = load_study(name).replaced(trials=2, workers=0)
    assert spec.space.preset == family
    url = f"sqlite:///{tmp_path / 'study.db'}"
    run_search(spec, url, tmp_path / "artifacts", Console(quiet=True))
    with Store(url) as store:
        trials = store.trials(name)
        assert [trial.state for trial in trials] == ["complete"] * 2, [trial.reason for trial in trials]
        front = store.current_front(name).members
        assert front
        for number in front:
            measured = store.get_trial(name, number).measurements
            assert measured["speedup"].low > 0
            assert "test_accuracy" in measured
