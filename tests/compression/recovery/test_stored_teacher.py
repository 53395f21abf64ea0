"""Outputs of a teacher that are stored: what is lost by it, when the teacher runs, and that weights do not depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slimfront.compression.recovery.checkpoint import Checkpoint
from slimfront.compression.recovery.stored_teacher import FEWEST, MOST_LOST, StoredForm, StoredTeacher
from slimfront.compression.recovery.teachers import Teacher
from slimfront.compression.recovery.train import train
from slimfront.core.batch import HOST
from slimfront.spaces.policies.policy import Recovery
from slimfront.workloads.load import adopt_workload
from slimfront.workloads.output_kind import OutputKind
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import Dataset

CLASSES = 200


class Counting(nn.Module):
    """Counts the samples that it has run on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, CLASSES))
        self.ran = 0

    def forward(self, x: Tensor) -> Tensor:
        self.ran += len(x)
        return self.layers(x)


class Read(Dataset):
    """Samples that are read one by one, and perhaps another time differ."""

    def __init__(self, noise: float = 0.0) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.inputs, self.noise = torch.randn(48, 6, generator=drawn), noise
        self.targets = torch.randint(CLASSES, (48,), generator=drawn)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index] + self.noise * torch.rand(6), int(self.targets[index])


def workload(noise: float = 0.0, **settings: Any) -> Workload:
    torch.manual_seed(0)
    data = Read(noise)
    made = Workload(Counting(32), data, data, data, data, torch.zeros(1, 6), **settings)
    return adopt_workload(made, "read", Path.cwd())


def trained(task: Workload, folder: Path | None, run: int = 0, epochs: float = 2) -> tuple[Tensor, int]:
    """The weights of a student, and how many samples its teacher ran on but for the look that chooses what is stored."""
    torch.manual_seed(1)
    student, teacher = Counting(8), task.model
    assert isinstance(teacher, Counting)
    teacher.ran = 0
    checkpoint = Checkpoint(folder / "policy" / f"training-{run}.pt", 1000.0) if folder is not None else None
    train(student, task, Recovery(epochs, stored_teacher=True), epochs, 0, 16, checkpoint=checkpoint)
    return student.layers[0].weight.detach(), teacher.ran - len(task.calibration)


def test_the_teacher_runs_once_for_each_sample_and_weights_do_not_depend_on_it(tmp_path: Path) -> None:
    task = workload()
    first, ran = trained(task, tmp_path)
    second, again = trained(task, tmp_path, 1)
    alone, each_time = trained(task, None)
    assert (ran, again, each_time) == (48, 16, 96), "later trainings only hold what is stored against one batch"
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)


def test_data_that_change_are_noticed_and_taught_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = workload(noise=0.1)
    first, ran = trained(task, tmp_path)
    assert "data change" in caplog.text
    assert ran == 96
    assert not [*(tmp_path / "teacher").glob("*.records")]
    assert torch.equal(first, trained(task, None)[0])
    assert torch.equal(first, trained(task, tmp_path, 1)[0]), "another training does not begin to store them again"


def test_what_another_function_of_the_same_weights_made_is_not_learned_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(workload(), tmp_path)
    edited = workload()
    edited.model.register_forward_hook(lambda _model, _inputs, outputs: -outputs)
    weights, _ = trained(edited, tmp_path, 1)
    assert "of another model" in caplog.text
    assert torch.equal(weights, trained(edited, None)[0])


def test_a_record_is_complete_before_its_checksum_says_that_it_is_there() -> None:
    """Another process may read between any two writes."""
    task = workload()
    kind = OutputKind(1)
    form = StoredForm.of(kind, 2.0, torch.randn(4, CLASSES))
    teacher = StoredTeacher(Teacher(task, (), None), form, None, 48)
    seen = []

    class Watched(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            seen.append(key)
            return super().__getitem__(key)

    teacher._records = np.zeros(48, form.record).view(Watched)
    teacher(torch.randn(2, 6), torch.tensor([[3, 5], [7, 9]]))
    written = [key for key in seen if isinstance(key, str)]
    assert written[-2:] == ["logits", "checksum"]


def test_outputs_are_stored_under_all_that_they_follow_from(tmp_path: Path) -> None:
    """A buffer that is not saved, a plain attribute, an extra state: each changes what the file is called."""

    class Noted(Counting):
        extra = "one"

        def __init__(self) -> None:
            super().__init__(8)
            self.register_buffer("shift", torch.zeros(1), persistent=False)
            self.scale, self.dropout = torch.ones(1), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.dropout(x)) * self.scale + self.shift

        def get_extra_state(self) -> dict[str, str]:
            return {"extra": self.extra}

        def set_extra_state(self, state: dict[str, str]) -> None:
            self.extra = state["extra"]

    def files_of(**changes: Any) -> set[str]:
        torch.manual_seed(0)
        model, data = Noted(), Read()
        for name, value in changes.items():
            setattr(model, name, value)
        task = Workload(model.train(), data, data, data, data, torch.zeros(1, 6))
        trained(adopt_workload(task, "noted", Path.cwd()), tmp_path, epochs=0.5)
        return {file.name for file in (tmp_path / "teacher").iterdir()}

    files_of()
    assert len(files_of()) == 1
    assert len(files_of(shift=torch.ones(1))) == 2
    assert len(files_of(scale=2 * torch.ones(1))) == 3
    assert len(files_of(extra="another")) == 4


def test_a_training_taken_up_in_the_middle_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = trained(workload(), None, epochs=3)
    saved, save = [], Checkpoint.save

    def end_at_fifth(self: Checkpoint, parts: Any, **place: Any) -> None:
        save(self, parts, **place)
        saved.append(place)
        if len(saved) == 5:
            raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "is_due", True)
        patched.setattr(Checkpoint, "save", end_at_fifth)
        with pytest.raises(InterruptedError):
            trained(workload(), tmp_path, epochs=3)
    rest, _ = trained(workload(), tmp_path, epochs=3)
    assert torch.equal(rest, whole)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("are_probabilities", [False, True])
@pytest.mark.parametrize(("spread", "fewer"), [(12.0, True), (0.5, False)], ids=["peaked", "flat"])
def test_what_is_left_out_is_bounded(axis: int, are_probabilities: bool, spread: float, fewer: bool) -> None:
    """Outputs [batch, classes, positions] or [batch, positions, classes]."""
    torch.manual_seed(0)
    logits = (spread * torch.randn(8, 5, 1000)).movedim(-1, axis)
    outputs = logits.softmax(axis) if are_probabilities else logits
    kind = OutputKind(axis, are_probabilities)
    form = StoredForm.of(kind, 2.0, outputs)
    assert (form.kept < 1000) is fewer
    records = form.shortened(outputs)
    restored = form.restored(records, HOST)
    assert restored.shape == outputs.shape
    expected, found = (kind.logits(each).double() / 2 for each in (outputs, restored))
    lost = (expected.softmax(-1) * (expected.log_softmax(-1) - found.log_softmax(-1))).sum(-1).mean()
    assert 0 <= float(lost) <= MOST_LOST * 1.1
    assert torch.equal(restored.argmax(axis), outputs.argmax(axis))
    if fewer:
        assert records.itemsize < 2 * 5 * 1000
        assert form.kept >= FEWEST
