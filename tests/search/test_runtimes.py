"""A search runs to its end on every CPU runtime that compiles nothing ahead of time, by the target's line of the study file alone."""

from pathlib import Path

import pytest
from slimfront.core.errors import StudyFileError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.search.driver import Search
from slimfront.search.execution.local import run_local
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.store.store import Store

TRIALS = {"cpu-litert": 3, "cpu-onnxruntime": 3, "cpu-openvino": 3, "cpu-torch": 3}


def test_a_runtime_without_weights_by_groups_is_refused_by_the_key_that_asks(tiny_spec):
    spec = tiny_spec(target="cpu-litert", space={"weight_bits": [4, 32], "weight_group_size": [0, 64]})
    with pytest.raises(StudyFileError, match=r"weight_group_size: .* takes no weights with scales by groups"):
        prepare(spec)


@pytest.mark.slow
@pytest.mark.parametrize("target", TRIALS)
def test_a_search_runs_to_its_end(target, tiny_spec, tmp_path: Path):
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        run_local(Search(prepare(tiny_spec(target=target, budget={"trials": TRIALS[target]})), store, tmp_path))
        trials = store.trials("tiny")
        assert [trial.state for trial in trials] == ["complete"] * TRIALS[target], [trial.reason for trial in trials]
        assert all(trial.measurements["speedup"].value > 0 for trial in trials)
        suffixes = {Path(a.path).suffix for t in trials for a in store.artifacts("tiny", t.number) if a.kind == "model"}
    expected = {"litert": ".tflite", "torch": ".pt2"}.get(load_target(target).runtime, ".onnx")
    assert suffixes == {expected}
