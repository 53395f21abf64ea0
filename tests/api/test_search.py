"""A search from Python: what its arguments mean, and that objects of a script or a notebook reach the workers."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import slimfront
import torch
from slimfront.api.searching import _spec
from slimfront.core.errors import StudyFileError, UserError
from slimfront.search.events import SensitivityMeasured
from slimfront.search.trials.given_workload import (
    loaded_workload,
    pickled_registrations,
    pickled_workload,
    take_registrations,
)
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.load import load_study
from torch import nn
from torch.utils.data import TensorDataset

OWN = Path(__file__).with_name("own_program.py")


class Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def workload(**changes: object) -> slimfront.Workload:
    data = TensorDataset(torch.randn(9, 4), torch.arange(9) % 3)
    given = {"model": Identity(), **dict.fromkeys(("train", "calibration", "validation", "test"), data)}
    return slimfront.Workload(**{**given, "example_input": torch.zeros(1, 4), **changes})


def test_a_workload_by_name_has_defaults_and_a_name() -> None:
    spec, given = _spec("torchvision:resnet18", {"budget": {"trials": 3}, "sampler": "random"})
    assert given is None
    assert (spec.study, spec.workload, spec.target) == ("torchvision-resnet18", "torchvision:resnet18", "cpu-openvino")
    assert (spec.budget.trials, spec.sampler, spec.space.preset) == (3, "random", "auto")


def test_a_workload_object_is_named_by_its_model() -> None:
    mine = workload()
    spec, given = _spec(mine, {"budget": {"trials": 3}})
    assert given is mine
    assert (spec.study, spec.workload) == ("Identity", "object:Identity")


def test_arguments_take_the_place_of_a_study_file_s_values_key_by_key() -> None:
    demo = load_study("digits-demo")
    spec, _ = _spec("digits-demo", {"budget": {"trials": 2}, "workers": 0, "space": {"width": [1.0]}})
    assert (spec.budget.trials, spec.budget.timeout_s, spec.workers) == (2, demo.budget.timeout_s, 0)
    assert (spec.space.width, spec.space.weight_bits) == ((1.0,), demo.space.weight_bits)
    assert spec.file == demo.file
    assert _spec(demo, {}) == (demo, None)


@pytest.mark.parametrize(
    ("source", "given", "problem"),
    [
        ("digits", {}, "search(): budget: is missing; give the number of trials, or {'timeout_s': SECONDS}"),
        ("digits", {"budget": {"trials": 0}}, "search(): budget.trials: must be at least 1, not 0"),
        ("digits-demo", {"spaces": {}}, "search(): spaces: unknown key; did you mean space?"),
        ("digits-demo", {"target": 7}, "search(): target: must be text, not 7"),
        (
            7,
            {},
            "search(): needs a study file, a workload's name or a slimfront.Workload, not int; a model needs its data",
        ),
        (Identity(), {}, "search(): needs a study file, a workload's name or a slimfront.Workload, not Identity; "),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(source: object, given: dict, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        _spec(source, given)
    assert str(caught.value).startswith(problem)


def test_an_object_that_cannot_be_pickled_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^the workload cannot be pickled for workers: .*; have a function make"):
        pickled_workload(workload(metric=lambda outputs, targets, lock=threading.Lock(): 0.0))


def test_a_pickled_workload_is_the_workload_and_is_needed_again() -> None:
    mine = workload()
    again = loaded_workload("object:Identity", {}, Path(), pickled_workload(mine))
    assert torch.equal(again.model.fc.weight, mine.model.fc.weight)
    assert again.model is not mine.model
    with pytest.raises(UserError, match=r"given as an object of a Python program: give it again, slimfront\.search"):
        loaded_workload("object:Identity", {}, Path())


def test_what_a_program_registered_is_registered_elsewhere_too() -> None:
    from slimfront.compression.pruning.criteria import CRITERIA, Magnitude

    slimfront.register_criterion("cubic", Magnitude(3))
    try:
        pickled = pickled_registrations()
    finally:
        del CRITERIA._own["cubic"]
    try:
        take_registrations(pickled)
        assert CRITERIA["cubic"] == Magnitude(3)
    finally:
        del CRITERIA._own["cubic"]


def test_a_search_of_a_file_that_is_not_there_is_an_error_of_slimfront_s_own(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="no such file"):
        slimfront.search(tmp_path / "study.yaml", storage=f"sqlite:///{tmp_path / 'a.db'}")


def test_callbacks_hear_what_the_search_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[object] = []
    url = f"sqlite:///{tmp_path / 'a.db'}"

    def searched(spec, storage, artifacts, console, started, given, listeners) -> None:
        with Store(storage) as store:
            store.create_study(spec, "fingerprint", {}, {})
        for listener in listeners:
            listener(SensitivityMeasured(1, 2))

    monkeypatch.setattr("slimfront.search.run.run_search", searched)
    study = slimfront.search("digits-demo", storage=url, callbacks=[heard.append], progress=False)
    assert heard == [SensitivityMeasured(1, 2)]
    assert study.name == "digits-demo"


@pytest.mark.slow
def test_a_program_s_own_objects_are_searched(tmp_path: Path) -> None:
    """As a notebook would have it: model, metric and criterion are of `__main__`, which no worker can import.

    The README's example is a script.
    """
    with OWN.open() as program:
        result = subprocess.run(
            [sys.executable, "-"], cwd=tmp_path, stdin=program, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "holds"
