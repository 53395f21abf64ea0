"""Distillation of outputs that are not logits [batch, classes]: dense maps, sequences, probabilities, values."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from slimfront.compression.recovery.distil import distillation_loss, get_distiller, imitation_loss
from slimfront.compression.recovery.outputs import ONE_CLASSIFIER, ONLY, OutputKinds, output_kinds
from slimfront.compression.recovery.recover import recover
from slimfront.compression.recovery.teachers import Teacher
from slimfront.spaces.policies.policy import Policy, Recovery
from slimfront.workloads.output_kind import LOGITS, OutputKind
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

NONE = nn.ModuleList()


def output_kind(workload: Workload) -> OutputKind:
    return output_kinds(workload).by_name[ONLY]


def only(kind: OutputKind) -> OutputKinds:
    return OutputKinds({ONLY: kind})


class Reshaped(nn.Module):
    """A linear layer whose outputs have another shape."""

    def __init__(self, features: int, shape: tuple[int, ...], last: nn.Module | None = None) -> None:
        super().__init__()
        self.fc, self.shape, self.last = nn.Linear(4, features), shape, last or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.fc(inputs).view(-1, *self.shape))


def dense_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets)


def last_axis_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.movedim(-1, 1), targets)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs.view(targets.shape), targets)


def task(shape: tuple[int, ...], targets: Tensor, loss, last: nn.Module | None = None) -> Workload:
    torch.manual_seed(0)
    model = Reshaped(math.prod(shape), shape, last)
    data = TensorDataset(torch.randn(len(targets), 4), targets)
    return Workload(model.eval(), data, data, data, data, data.tensors[0][:1], loss=loss, metric=lambda o, t: 0.0)


def whole(*shape: int) -> Tensor:
    return torch.randint(0, 3, (24, *shape), generator=torch.Generator().manual_seed(1))


def real(*shape: int) -> Tensor:
    return torch.randn(24, *shape, generator=torch.Generator().manual_seed(1))


CASES = {
    "logits": (task((3,), whole(), None), (1, False)),
    "logits and a loss of its own": (task((3,), whole(), dense_loss), (1, False)),
    "dense maps": (task((3, 2, 5), whole(2, 5), dense_loss), (1, False)),
    "sequences, classes last": (task((5, 3), whole(5), last_axis_loss), (2, False)),
    "probabilities": (task((3,), whole(), dense_loss, nn.Softmax(1)), (1, True)),
    "soft targets": (task((3,), real(3).softmax(1), dense_loss), (1, False)),
    "values": (task((2,), real(2), squared), (None, False)),
    "one value": (task((1,), real(1), squared), (None, False)),
    "a value without an axis": (task((), real(), squared), (None, False)),
    "one logit of a binary task": (task((1,), whole(), squared), (None, False)),
    "several labels": (task((3,), (real(3) > 0).float(), squared), (None, False)),
    "whole numbers as values": (task((3,), whole(3), squared), (None, False)),
    "a map of values": (task((2, 3, 3), real(2, 3, 3), squared), (None, False)),
}


@pytest.mark.parametrize(("workload", "expected"), CASES.values(), ids=CASES)
def test_the_kind_of_outputs_follows_from_loss_target_and_outputs(workload, expected):
    kind = output_kind(workload)
    assert (kind.class_axis, kind.are_probabilities) == expected


@pytest.mark.parametrize("name", ["soft", "hard"])
@pytest.mark.parametrize("workload", [case[0] for case in CASES.values()], ids=CASES)
def test_a_distiller_is_zero_or_least_at_the_teacher_and_its_gradient_leads_there(workload, name):
    """The invariant of distillation whatever the outputs: gradient descent on it alone brings the outputs to the teacher's."""
    distiller = get_distiller(name, 2.0, output_kinds(workload))
    inputs, teacher = workload.train.tensors[0], copy.deepcopy(workload.model)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # not the seed of the teacher
        student = Reshaped(teacher.fc.out_features, teacher.shape, teacher.last)
    with torch.no_grad():
        taught = teacher(inputs)
    optimizer = torch.optim.Adam(student.parameters(), 0.1)
    losses = []
    for _ in range(150):
        loss = distiller.loss([student(inputs)], [taught], NONE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert distiller.loss([taught], [taught], NONE) <= losses[0]


def test_dense_logits_are_so_many_samples():
    student, teacher = real(3, 2, 5), real(3, 2, 5).flip(0)
    rows = [outputs.permute(0, 2, 3, 1).reshape(-1, 3) for outputs in (student, teacher)]
    torch.testing.assert_close(imitation_loss(student, teacher, 2.0, ONE_CLASSIFIER), distillation_loss(*rows, 2.0))
    last = only(OutputKind(3))
    moved = [outputs.movedim(1, -1) for outputs in (student, teacher)]
    torch.testing.assert_close(imitation_loss(*moved, 2.0, last), distillation_loss(*rows, 2.0))


def test_probabilities_are_compared_as_what_they_are():
    student, teacher = real(3), real(3).flip(0)
    probabilities = [outputs.softmax(1) for outputs in (student, teacher)]
    expected = distillation_loss(student, teacher, 1.0)
    torch.testing.assert_close(imitation_loss(*probabilities, 1.0, only(OutputKind(1, True))), expected)
    certain = torch.tensor([[1.0, 0.0]])
    assert math.isfinite(imitation_loss(certain, certain.flip(1), 2.0, only(OutputKind(1, True))))


def test_values_are_compared_in_units_of_the_teachers_variance():
    """The loss does not depend on the unit that a value is measured in, each on its own."""
    workload, unit = task((2,), real(2), squared), torch.tensor([1000.0, 0.1])
    teacher = workload.model(workload.train.tensors[0]).detach()
    student, plain = teacher + real(2), output_kind(workload)
    torch.testing.assert_close(plain.variance, teacher.var(0, correction=0))
    scaled = OutputKind(None, variance=plain.variance * unit.square())
    torch.testing.assert_close(scaled.distance(student * unit, teacher * unit), plain.distance(student, teacher))


def test_a_value_that_hardly_varies_does_not_outweigh_the_others():
    workload = task((2,), real(2), squared)
    with torch.no_grad():
        workload.model.fc.weight[1] = 0  # a constant
        kind, varying = output_kind(workload), float(workload.model(workload.train.tensors[0]).var(0, correction=0)[0])
        assert kind.variance.tolist() == pytest.approx([varying, 1e-3 * varying / 2])
        constant = replace(workload, model=copy.deepcopy(workload.model))
        constant.model.fc.weight.zero_()
    assert output_kind(constant).variance is None


def test_an_ensemble_is_averaged_as_its_outputs_mean():
    first, second = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    mean = LOGITS.mean([first, second]).softmax(1)
    torch.testing.assert_close(mean, torch.tensor([[0.375, 0.625]]))
    torch.testing.assert_close(OutputKind(None).mean([first, second]), (first + second) / 2)
    dense = LOGITS.mean([first[..., None], second[..., None]])
    torch.testing.assert_close(dense[..., 0].softmax(1), mean)


def test_a_regression_learns_from_its_teacher_alone():
    """Half of a regression's teacher is lost, and distillation without labels brings the outputs back; before, nothing was learned."""
    workload = task((1,), real(1), squared)
    student = copy.deepcopy(workload.model)
    with torch.no_grad():
        student.fc.weight[:, ::2] = 0
    inputs = workload.train.tensors[0]
    before = (student(inputs) - workload.model(inputs)).square().mean()
    recovery = Recovery(40, 0.02, data="unlabelled", schedule="cosine", teachers=(), mutual=True)
    recover(student, workload, Policy(recovery=recovery), seed=0, batch_size=8)
    assert (student(inputs) - workload.model(inputs)).square().mean() < 0.1 * before


def test_teachers_of_values_are_averaged():
    workload = CASES["values"][0]
    teacher = Teacher(workload, (), None, output_kinds(workload))
    teacher.models.append(nn.Sequential(workload.model, nn.Hardtanh(-1e9, 0)))
    inputs = workload.train.tensors[0]
    expected = (workload.model(inputs) + workload.model(inputs).clamp_max(0)) / 2
    torch.testing.assert_close(teacher(inputs)[0], expected.detach())


class Detector(nn.Module):
    """Three outputs of one embedding: probabilities of two classes, a box, five marks."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.box, self.marks = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 10)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {
            "face": self.classes(inputs).softmax(1),
            "box": 100 * self.box(inputs),
            "marks": self.marks(inputs),
        }


def detection(**said: OutputKind) -> Workload:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 4), torch.zeros(24))

    def loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return outputs["box"].square().mean()

    args = (data, data, data, data, data.tensors[0][:1])
    return Workload(Detector().eval(), *args, loss=loss, metric=lambda o, t: 0.0, output_kinds=said)


def test_each_of_several_outputs_has_its_kind_and_its_weight():
    kinds = output_kinds(detection()).by_name
    assert {name: kind.words for name, kind in kinds.items()} == {
        "face": "probabilities of classes along axis 1",
        "box": "values",
        "marks": "values",
    }
    said = output_kinds(detection(face=OutputKind(None, weight=3.0), box=OutputKind(None, weight=0.0))).by_name
    assert [kind.weight for kind in said.values()] == [3, 0, 1]
    assert said["face"].variance is not None


def test_one_class_a_sample_is_the_target_of_one_output():
    workload = detection()
    data = TensorDataset(workload.train.tensors[0], torch.arange(24) % 10)
    kinds = output_kinds(replace(workload, model=copy.deepcopy(workload.model), train=data)).by_name
    assert {name: kind.class_axis for name, kind in kinds.items()} == {"face": 1, "box": None, "marks": None}


def test_the_damage_of_several_outputs_is_their_weighted_mean_in_no_ones_unit():
    workload = detection(box=OutputKind(None, weight=2.0))
    kinds, inputs = output_kinds(workload), workload.train.tensors[0]
    with torch.no_grad():
        expected = workload.model(inputs)
        noise = {name: 0.1 * expected[name].std(0) * torch.randn(24, 1) for name in ("box", "marks")}
        found = {**expected, **{name: expected[name] + gap for name, gap in noise.items()}}
    damage = kinds.damage(found, expected)
    of_each = {name: kinds.by_name[name].damage(found[name], expected[name]) for name in expected}
    torch.testing.assert_close(damage, (of_each["face"] + 2 * of_each["box"] + of_each["marks"]) / 4)
    assert of_each["face"].abs().max() == 0
    assert float(of_each["box"].mean()) == pytest.approx(0.01, rel=0.5)  # a tenth of the deviation: 20 dB
    assert kinds.damage(expected, expected).abs().max() == 0


def test_a_student_of_several_outputs_learns_them_all():
    workload = detection()
    student, inputs = copy.deepcopy(workload.model), workload.train.tensors[0]
    with torch.no_grad():
        for layer in (student.classes, student.box, student.marks):
            layer.weight[:, ::2] = 0
        expected, before = workload.model(inputs), student(inputs)
    kinds = output_kinds(workload)
    recovery = Recovery(40, 0.05, data="unlabelled", schedule="cosine", optimizer="adamw", mutual=True)
    recover(student, workload, Policy(recovery=recovery), seed=0, batch_size=8)
    after = student(inputs)
    for name, kind in kinds.by_name.items():
        assert kind.damage(after[name], expected[name]).mean() < 0.3 * kind.damage(before[name], expected[name]).mean()
