"""Distillers by hand, and the registry they are found in."""

import copy
import gc
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slimfront.compression.recovery.distil import (
    _angles,
    distillers,
    feature_loss,
    get_distiller,
    register_distiller,
    relation_loss,
)
from slimfront.compression.recovery.feature_taps import projections, tapped_modules, tapping
from slimfront.compression.recovery.recover import recover
from slimfront.compression.recovery.synthetic import synthetic_inputs
from slimfront.compression.recovery.teachers import Teacher
from slimfront.core.errors import PolicyError, WorkloadError
from slimfront.spaces.policies.policy import Policy, Recovery
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset

NONE = nn.ModuleList([nn.Identity()])


class Small(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(width * 4, 3)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x).relu()).flatten(1))


def task(width: int = 4) -> Workload:
    torch.manual_seed(0)
    images = torch.randn(40, 1, 4, 4)
    data = TensorDataset(images, torch.zeros(40, dtype=torch.int64))
    return Workload(Small(width).eval(), data, data, data, data, images[:1])


def test_the_registry_lists_what_it_knows():
    assert distillers() == ["attention", "feature", "hard", "relation", "soft"]
    with pytest.raises(PolicyError, match=r"^unknown distiller 'sfot'; known are attention, .*soft$"):
        get_distiller("sfot", 1.0)
    with pytest.raises(PolicyError, match=r"^distiller 'soft' is already registered; known are"):
        register_distiller("soft", type(get_distiller("soft", 1.0)))


def test_hard_labels_are_the_teachers_classes():
    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[5.0, 1.0]])
    assert get_distiller("hard", 4.0).loss([student], [teacher], NONE).item() == pytest.approx(math.log(4))


def test_feature_loss_by_hand():
    # Mean squared distance (1 + 1) / 2 over the teacher's mean square (1 + 0) / 2, and orthogonal vectors: 2 + 1.
    assert feature_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(3.0)


def test_relations_ignore_scale_and_rotation():
    distiller, logits = get_distiller("relation", 1.0), torch.randn(4, 3)
    taught = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    turned = 3 * taught @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert distiller.loss([logits, turned], [logits, taught], NONE).item() == pytest.approx(0, abs=1e-6)
    # Three points on a line, in the middle of each other or evenly spaced: distances 1, 2, 3 and 1, 1, 2 in units of their
    # means 2 and 4/3 are 1/2, 1, 3/2 and 3/4, 3/4, 3/2; all angles are the same.
    own, even = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    expected = 2 * (0.5 * 0.25**2 + 0.5 * 0.25**2) / 9
    logits = logits[:3]
    assert distiller.loss([logits, own], [logits, even], NONE).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("samples", [1, 3])
def test_samples_that_are_all_the_same_have_no_relations(samples):
    own = torch.ones(samples, 2, requires_grad=True)
    logits, taught = torch.zeros(samples, 3), torch.ones(samples, 4)
    loss = get_distiller("relation", 1.0).loss([logits, own], [logits, taught], NONE)
    loss.backward()
    assert (loss.item(), own.grad.abs().max().item()) == (0, 0)


def test_angles_by_hand():
    # A right angle at the first of three points and 45 degrees at the others, against three points on a line, where the
    # cosines are 1 at the ends and -1 in the middle. A sample's angle with itself is 0 on both sides.
    corner, line = (
        torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]),
    )
    gaps = [0 - (-1), math.sqrt(0.5) - 1, math.sqrt(0.5) - 1]  # at each point, between the directions to the two others
    expected = sum(2 * 0.5 * gap**2 for gap in gaps) / 27
    assert relation_loss(_angles(corner), _angles(line)).item() == pytest.approx(expected, rel=1e-5)


def test_attention_is_where_activations_are_strong_whatever_the_channels():
    distiller, logits = get_distiller("attention", 1.0), torch.zeros(1, 3)
    left, right = torch.zeros(1, 2, 1, 2), torch.zeros(1, 5, 1, 2)
    left[..., 0], right[..., 1] = 3.0, 7.0
    assert distiller.loss([logits, left], [logits, left * 9], NONE).item() == pytest.approx(0, abs=1e-4)
    assert distiller.loss([logits, left], [logits, right], NONE).item() == pytest.approx(1000.0)


def test_taps_see_what_the_last_layer_reads_and_the_last_map_of_each_resolution():
    workload = task()
    model, example = workload.model, workload.example_input
    assert tapped_modules(model, example, "embedding") == ["fc"]
    assert tapped_modules(model, example, "maps") == ["conv", "pool"]
    with tapping(model, ["fc"], "embedding") as views:
        model(example)
    assert [view.shape for view in views] == [(1, 16)]
    with pytest.raises(WorkloadError, match=r"^the model has no images of activations for the distiller to look at$"):
        tapped_modules(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), example, "maps")
    assert [type(p) for p in projections([torch.zeros(1, 8)], views, "embedding")] == [nn.Linear]


def test_what_a_teacher_says_is_computed_once_and_an_ensemble_averages_probabilities():
    workload = task()
    teacher = Teacher(workload, (), "embedding")
    annotated = teacher.annotated(workload.train)
    assert teacher.annotated(workload.train) is annotated
    with torch.no_grad():
        torch.testing.assert_close(
            torch.stack([item[2] for item in annotated]), workload.model(workload.train.tensors[0])
        )
    assert annotated[0][3].shape == (16,)
    other = Small(2).eval()
    teacher.models.append(other)
    images = workload.train.tensors[0]
    with torch.no_grad():
        mean = (workload.model(images).softmax(-1) + other(images).softmax(-1)) / 2
    torch.testing.assert_close(teacher(images)[0].softmax(-1), mean)


def test_what_was_said_of_a_data_set_goes_with_it():
    workload = task()
    images = synthetic_inputs(workload, 0)
    gone = [weakref.ref(images), weakref.ref(Teacher(workload, (), None).annotated(images))]
    assert gone[1]() is not None
    del images
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


OTHER = """
import torch
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset

open({log!r}, "a").write("loaded ")


def workload(classes=3, side=4):
    torch.manual_seed(1)
    images = torch.randn(4, 1, side, side)
    data = TensorDataset(images, torch.zeros(4, dtype=torch.int64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes))
    return Workload(model, data, data, data, data, images[:1])


def more():
    return workload(classes=7)


def larger():
    return workload(side=5)
"""


@pytest.fixture
def beside_the_study(tmp_path: Path) -> Workload:
    """A workload in whose folder a teacher's file is."""
    (tmp_path / "other.py").write_text(OTHER.format(log=str(tmp_path / "log")))
    return replace(task(), base=tmp_path)


def test_a_student_learns_from_a_teacher_in_the_study_s_folder_that_is_loaded_once(beside_the_study):
    def learnt(*teachers: str) -> Tensor:
        student, recovery = copy.deepcopy(beside_the_study.model), Recovery(1, teachers=teachers, mutual=True)
        return recover(student, beside_the_study, Policy(recovery=recovery), 0, 16).fc.weight

    alone, *taught = learnt(), learnt("other.py:workload"), learnt("other.py:workload")
    assert torch.equal(*taught)
    assert not torch.equal(alone, taught[0])
    assert (beside_the_study.base / "log").read_text() == "loaded "


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("more", r"^other.py:more makes outputs \[1, 7\], not \[1, 3\] as the workload's model does$"),
        ("larger", r"^other.py:larger does not run on the workload's example input: RuntimeError: mat1 and mat2"),
        ("gone", r"^workload other.py:gone: there is no function 'gone' in it"),
    ],
)
def test_a_teacher_of_something_else_is_refused_in_one_line(beside_the_study, function, problem):
    with pytest.raises(WorkloadError, match=problem):
        Teacher(beside_the_study, [f"other.py:{function}"], None)
