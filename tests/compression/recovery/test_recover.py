"""Recovery: what it may change, what it must not, and the distillation loss by hand."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slimfront.compression.pruning.prune import mask_weight
from slimfront.compression.recovery.distil import distillation_loss
from slimfront.compression.recovery.recover import recover
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

MASKED = {"0": LayerPolicy(sparsity="2:4"), "4": LayerPolicy(sparsity=0.5)}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(*layers).eval()


def samples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, 4, 4, generator=generator)
    return TensorDataset(inputs, inputs.mean((2, 3)).argmax(1) % 3)


def task(**changes) -> Workload:
    train = samples(64, 0)
    parts = {"model": network(1), "train": train, "example_input": train.tensors[0][:1], **changes}
    return Workload(calibration=train, validation=train, test=train, **parts)


def recovered(workload: Workload, seed: int = 0, layers=None, student_seed: int = 2, **recipe) -> nn.Sequential:
    student = network(student_seed)
    for name, decision in (layers or {}).items():
        mask_weight(student.get_submodule(name), decision.sparsity)
    policy = Policy(layers=layers or {}, recovery=Recovery(**{"epochs": 2, "learning_rate": 0.1, **recipe}))
    recover(student, workload, policy, seed, batch_size=16)
    return student


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    workload = task()
    assert same(recovered(workload, seed=5), recovered(workload, seed=5))
    assert not same(recovered(workload, seed=5), recovered(workload, seed=6))


def test_dropout_follows_the_seed_and_the_callers_random_state_stays():
    def with_dropout() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))

    students, workload = [with_dropout(), with_dropout()], task(model=with_dropout())
    for index, student in enumerate(students):
        torch.manual_seed(100 + index)  # whatever the caller was doing
        before = torch.get_rng_state()
        recover(student, workload, Policy(recovery=Recovery(1)), seed=0, batch_size=16)
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*students)


def test_masked_weights_stay_zero_and_the_others_move():
    dense, sparse = network(2), recovered(task(), layers=MASKED)
    for name in MASKED:
        mask_weight(dense.get_submodule(name), MASKED[name].sparsity)
        before, after = dense.get_submodule(name).weight, sparse.get_submodule(name).weight
        zeros = before == 0
        assert int(zeros.sum()) == before.numel() // 2
        assert (after[zeros] == 0).all()
        assert (after[~zeros] != before[~zeros]).all()


def test_the_student_ends_in_evaluation_mode_and_the_teacher_is_untouched():
    workload = task()
    before = copy.deepcopy(workload.model)
    student = recovered(workload)
    assert not any(module.training for module in student.modules())
    assert not any(module.training for module in workload.model.modules())
    assert same(before, workload.model)


def test_no_epochs_change_nothing():
    student = network(2).train()
    recover(student, task(), Policy(), seed=0)
    assert same(student, network(2))


def test_recovery_learns_the_task():
    workload = task(train=samples(1000, 3))
    inputs, targets = samples(500, 4).tensors
    before = (network(2)(inputs).argmax(1) == targets).float().mean()
    student = recovered(workload, epochs=6, alpha=0.0)
    assert (student(inputs).argmax(1) == targets).float().mean() > before + 0.3


def test_recovery_learns_from_the_teacher():
    workload = task(train=samples(1000, 3))
    inputs, _ = samples(500, 4).tensors
    agree = lambda student: (student(inputs).argmax(1) == workload.model(inputs).argmax(1)).float().mean()  # noqa: E731
    assert agree(recovered(workload, epochs=6, alpha=1.0)) > agree(network(2)) + 0.3


def test_alpha_one_never_looks_at_the_targets():
    data = samples(64, 0)
    shuffled = TensorDataset(data.tensors[0], data.tensors[1].flip(0))
    assert same(recovered(task(train=data), alpha=1.0), recovered(task(train=shuffled), alpha=1.0))
    assert not same(recovered(task(train=data), alpha=0.9), recovered(task(train=shuffled), alpha=0.9))


def test_alpha_zero_never_listens_to_the_teacher():
    assert same(recovered(task(model=network(1)), alpha=0.0), recovered(task(model=network(7)), alpha=0.0))
    assert not same(recovered(task(model=network(1)), alpha=0.1), recovered(task(model=network(7)), alpha=0.1))


def test_the_workloads_own_loss_is_used():
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, label_smoothing=0.3)

    assert not same(recovered(task(loss=loss)), recovered(task()))
    assert same(recovered(task(loss=functional.cross_entropy)), recovered(task()))


def test_two_steps_by_hand():
    """SGD with Nesterov momentum under a one-cycle schedule, followed by hand on a layer of one weight."""
    one = torch.ones(4, 1)
    data = TensorDataset(one, one)
    workload = dataclasses.replace(
        task(), model=nn.Linear(1, 1), train=data, calibration=data, loss=lambda outputs, _: outputs.mean()
    )
    student = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(student.weight)
    recover(student, workload, Policy(recovery=Recovery(1, learning_rate=0.1, alpha=0.0)), seed=0, batch_size=2)
    # The loss is the weight itself, so its gradient is 1. Of two steps the cycle's rise takes 0.3 x 2 - 1 = -0.4; the
    # first step is then 0.4 / 1.4 down the cosine from rate 0.1, momentum 0.85 to next to nothing, momentum 0.95.
    cosine = (1 + math.cos(math.pi * 0.4 / 1.4)) / 2
    rate, momentum = 0.1 * cosine, 0.95 - 0.1 * cosine
    assert student.weight.item() == pytest.approx(-rate * (1 + momentum), rel=1e-4)


def test_a_last_batch_of_one_sample_is_left_out():
    """Batch-norm would otherwise end on the statistics of a single image."""
    data = samples(33, 0)
    data.tensors[0][:] += 5
    seen = []
    student = network(2)
    student.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    recover(student, task(train=data), Policy(recovery=Recovery(2)), seed=0, batch_size=16)
    assert seen == [16, 16, 16, 16]


def test_distillation_loss_by_hand():
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    # The teacher says 3/4 and 1/4, the student a half each.
    assert distillation_loss(student, teacher, 1.0).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    high = math.sqrt(3) / (math.sqrt(3) + 1)  # logits halved
    by_hand = high * math.log(2 * high) + (1 - high) * math.log(2 * (1 - high))
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(4 * by_hand, rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 20))
def test_distillation_loss_is_the_formula(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) * 3
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), expected)
    assert distillation_loss(student, teacher, temperature) >= 0
    assert distillation_loss(teacher, teacher, temperature).abs() < 1e-9
