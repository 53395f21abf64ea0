"""A study whose recovery does not fit its workload is refused before anything is searched."""

from pathlib import Path

import pytest
from slimfront.core.errors import StudyFileError
from slimfront.hardware_profiles.runtimes.registry import RUNTIMES, RuntimeEntry
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.inspection.inspect import inspect_reference
from slimfront.studies.study_file.load import load_study

IMAGES = """
import torch
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


def data(flawed=False):
    inputs = torch.randn(8, 3, 6, 6)
    inputs[5, 0, 0, 0] = torch.nan if flawed else 0.0
    return TensorDataset(inputs, torch.arange(8) % 2)


class Rolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 2)

    def forward(self, images):
        hidden = self.first(images).relu().roll(1, 1)
        return self.fc(self.second(hidden).relu().mean((2, 3)))


def workload(flawed=False):
    return Workload(Rolled(), data(), data(), data(flawed), data(), torch.randn(1, 3, 6, 6))
"""

PERCEPTRON = """
import torch
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


def workload(classes=2):
    data = TensorDataset(torch.randn(8, 16), torch.zeros(8, dtype=torch.int64))
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes))
    return Workload(model, data, data, data, data, torch.randn(1, 16))


def many():
    return workload(9)
"""


@pytest.mark.parametrize(
    ("recovery", "problem"),
    [
        (
            {"teachers": ["perceptron.py:many"]},
            "recovery.teachers: perceptron.py:many makes outputs [1, 9], not [1, 2] as the workload's model does",
        ),
        (
            {"distiller": "attention"},
            "recovery.distiller: the model has no images of activations for the distiller to look at",
        ),
    ],
    ids=["teachers", "distiller"],
)
def test_a_recovery_the_workload_has_no_place_for_names_file_and_key(tmp_path: Path, study_file, recovery, problem):
    (tmp_path / "perceptron.py").write_text(PERCEPTRON)
    file = study_file(workload="perceptron.py:workload", recovery=recovery)
    with pytest.raises(StudyFileError) as caught:
        prepare(load_study(str(file)))
    assert str(caught.value) == f"{file}: {problem}"


REFUSED = {
    "criterion": (
        {"space": {"criterion": ["l2", "fisher"]}},
        "space.criterion.1: unknown criterion 'fisher'; known are bn_scale, l1, l2, random, taylor",
    ),
    "bits": ({"space": {"weight_bits": [3, 32]}}, "space.weight_bits.0: target "),
    "empty": ({"space": {"weight_bits": [8, 32], "keep": ["*"]}}, "space: nothing is left to choose"),
    "teachers": ({"recovery": {"teachers": ["perceptron.py:many"]}}, "recovery.teachers: perceptron.py:many makes"),
    "workload": ({"workload_options": {"classes": -1}}, "workload: "),
}


@pytest.mark.parametrize(("changes", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_a_search_refuses_an_inspection_refuses_in_the_same_line(tmp_path: Path, study_file, changes, problem):
    (tmp_path / "perceptron.py").write_text(PERCEPTRON)
    (tmp_path / "card.yaml").write_text(
        "{name: card, runtime: openvino, weight_bits: [4, 8, 32], activation_bits: [8, 32]}"
    )
    file = study_file(workload="perceptron.py:workload", target="card.yaml", **changes)
    with pytest.raises(StudyFileError) as searched:
        prepare(load_study(str(file)))
    with pytest.raises(StudyFileError) as inspected:
        inspect_reference(str(file))
    assert str(searched.value) == str(inspected.value)
    assert str(searched.value).startswith(f"{file}: {problem}")


def test_a_runtime_that_only_this_program_knows_is_refused(tmp_path: Path, study_file, monkeypatch):
    monkeypatch.setattr(RUNTIMES, "_own", {**RUNTIMES._own})
    RUNTIMES.register("mine", RuntimeEntry("mine", "Mine", "nothing"))
    (tmp_path / "perceptron.py").write_text(PERCEPTRON)
    (tmp_path / "card.yaml").write_text("{name: card, runtime: mine, weight_bits: [8, 32], activation_bits: [8, 32]}")
    file = study_file(workload="perceptron.py:workload", target="card.yaml")
    for refused in (lambda: prepare(load_study(str(file))), lambda: inspect_reference(str(file))):
        with pytest.raises(
            StudyFileError, match=r"study.yaml: target: runtime 'mine' is known to this program only, .*entry point"
        ):
            refused()


def test_a_teacher_in_the_study_s_folder_is_found_from_anywhere(tmp_path: Path, tiny_spec):
    (tmp_path / "perceptron.py").write_text(PERCEPTRON)
    spec = tiny_spec(workload="perceptron.py:workload", recovery={"teachers": ["perceptron.py:workload"]})
    assert prepare(spec).space.recovery.teachers == ("perceptron.py:workload",)


def test_data_and_groups_are_looked_at_before_anything_is_searched(tmp_path: Path, study_file):
    (tmp_path / "images.py").write_text(IMAGES)
    file = study_file(workload="images.py:workload")
    prepared = prepare(load_study(str(file)))
    assert [group.name for group in prepared.groups] == ["second"]
    assert "change places" in prepared.unprunable["first"]
    file = study_file(workload="images.py:workload", workload_options={"flawed": True})
    with pytest.raises(StudyFileError) as caught:
        prepare(load_study(str(file)))
    assert str(caught.value) == (
        f"{file}: workload: workload images.py:workload: validation[5]'s input holds NaN; "
        "repair it (torch.nan_to_num) or leave the sample out"
    )
