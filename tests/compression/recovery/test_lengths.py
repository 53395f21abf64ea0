"""Recoveries of a part of an epoch, or of so many steps: in study files, policies and trainings."""

import copy
import math
from pathlib import Path

import pytest
import torch
from slimfront.compression.recovery.recover import recover, recover_by_rungs
from slimfront.compression.recovery.train import steps_of_an_epoch, train, training
from slimfront.core.errors import PolicyError, StudyFileError
from slimfront.spaces.policies.policy import Policy, Recovery
from slimfront.studies.study_file.parts import RungsSpec
from slimfront.studies.study_file.spec import StudySpec, incompatible_changes
from slimfront.workloads.workload import Workload
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset

SAMPLES, BATCH = 80, 4


@pytest.fixture
def workload() -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs = torch.randn(SAMPLES, 4)
    data = TensorDataset(inputs, inputs.argmax(1) % 3)
    return Workload(model, data, data, data, data, inputs[:1])


class Steps:
    """The learning rate of every step of the optimizer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rates, own = [], OneCycleLR.step

        def step(schedule: OneCycleLR, *arguments: int) -> None:
            if schedule.last_epoch >= 0:
                self.rates.append(schedule.get_last_lr()[0])
            own(schedule, *arguments)

        monkeypatch.setattr(OneCycleLR, "step", step)


@pytest.mark.parametrize(("epochs", "steps"), [(0.25, 5), (1, 20), (2.5, 50), (0.001, 1)])
def test_a_part_of_an_epoch_is_that_share_of_its_batches_and_the_schedule_ends_with_it(
    workload: Workload, epochs: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Steps(monkeypatch)
    train(copy.deepcopy(workload.model), workload, Recovery(epochs), epochs, 0, BATCH)
    assert len(counted.rates) == steps
    assert steps == 1 or counted.rates[-1] < 1e-5 < max(counted.rates)


def test_whole_and_partial_epochs_are_announced_and_the_end_is_the_policy_s(workload: Workload) -> None:
    student = copy.deepcopy(workload.model)
    assert list(training(student, workload, Recovery(2.3), 2.3, 0, BATCH, looks=(0.5, 1.2))) == [0.5, 1, 1.2, 2, 2.3]
    policy, marks = Policy(recovery=Recovery(0.5)), RungsSpec().marks(0.5)
    assert marks == (0.125,)
    assert [done for _, done in recover_by_rungs(student, workload, policy, 0, BATCH, marks)] == [0.125, 0.5]


def test_early_stopping_judges_the_last_part_of_an_epoch_too(workload: Workload) -> None:
    whole = recover(copy.deepcopy(workload.model), workload, Policy(recovery=Recovery(1.5, 0.05)), 0, BATCH)
    policy = Policy(recovery=Recovery(1.5, 0.05, patience=5))
    patient = recover(copy.deepcopy(workload.model), workload, policy, 0, BATCH)
    assert not torch.equal(patient[0].weight, workload.model[0].weight)
    assert not torch.equal(patient[0].weight, whole[0].weight)  # a tenth of the data is held out


def test_several_trainings_share_a_part_of_an_epoch(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Steps(monkeypatch)
    recovery = Recovery(0.5, steps=("train", "prune", "train"))
    recover(copy.deepcopy(workload.model), workload, Policy(recovery=recovery), 0, BATCH, lambda model: model)
    assert len(counted.rates) == 2 * 5


def test_whole_epochs_are_written_as_ever_and_parts_come_back() -> None:
    assert Policy(recovery=Recovery(2.0)).to_json() == Policy(recovery=Recovery(2)).to_json()
    assert '"epochs":2,' in Policy(recovery=Recovery(2)).to_json()
    part = Policy(recovery=Recovery(0.25))
    assert Policy.from_json(part.to_json()) == part != Policy(recovery=Recovery(0.5))
    for wrong in (-0.5, math.nan, "half", True):
        with pytest.raises(PolicyError, match=r"recovery epochs must be a number >= 0, not"):
            Recovery(wrong)


def spec_of(**parts) -> StudySpec:
    document = {
        "study": "s", "workload": "digits", "target": "cpu-openvino", "objectives": ["accuracy_drop", "latency_ms"],
        "budget": {"trials": 1}, **parts,
    }  # fmt: skip
    return StudySpec.from_document(document, "study.yaml", Path())


def test_steps_of_a_study_file_are_parts_of_an_epoch_of_its_data(workload: Workload) -> None:
    for settings, steps in (
        ({"batch_size": 4}, 20),
        ({"batch_size": 4, "accumulate": 3}, 6),
        ({"batch_size": 4, "patience": 2}, 18),
        ({"batch_size": 100}, 1),
        ({"batch_size": 4, "data": "synthetic"}, 64),
    ):
        spec = spec_of(recovery=settings, space={"recovery_steps": [0, 5, 40]})
        per_epoch = steps_of_an_epoch(workload, spec.recovery.settings(), spec.recovery.batch_size)
        assert per_epoch == steps
        in_epochs = spec.in_epochs(per_epoch)
        offered = in_epochs.space.choices()["recovery_epochs"]
        assert [round(epochs * steps) for epochs in offered] == [0, 5, 40]
        begun = StudySpec.from_json(in_epochs.to_json())
        assert begun.space.choices()["recovery_epochs"] == offered
        other = spec_of(recovery=settings, space={"recovery_steps": [0, 5]}).in_epochs(per_epoch)
        assert incompatible_changes(begun, other) == ["space.recovery_steps"]


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ({"recovery_steps": [0, 5], "recovery_epochs": [0, 1]}, "space: give recovery_epochs or recovery_steps, not both"),
        ({"recovery_steps": [0.5]}, "space.recovery_steps.0: must be a whole number, not 0.5"),
        ({"recovery_steps": []}, "space.recovery_steps: must not be empty"),
        ({"recovery_epochs": [0, -0.5]}, "space.recovery_epochs.1: must be at least 0, not -0.5"),
        ({"recovery_epochs": [0, "half"]}, "space.recovery_epochs.1: must be a number, not 'half'"),
        ({"recovery_epochs": [1, 1.0]}, "space.recovery_epochs: 1 appears twice"),
    ],
)  # fmt: skip
def test_a_wrong_length_is_reported_in_one_line(space: dict, problem: str) -> None:
    with pytest.raises(StudyFileError) as raised:
        spec_of(space=space)
    assert str(raised.value).endswith(problem)
