"""One step of recovery by hand: schedules, early stopping, mutual learning, mixed precision."""

import copy
import logging
import math

import pytest
import torch
from slimfront.compression.finite import require_finite
from slimfront.compression.recovery.computing import precision_of
from slimfront.compression.recovery.early_stopping import EarlyStopping
from slimfront.compression.recovery.schedules import optimizer_of, schedule_of
from slimfront.compression.recovery.train import _Training, train
from slimfront.core.errors import CompressionError
from slimfront.spaces.policies.policy import Recovery
from slimfront.workloads.workload import Workload
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def workload() -> Workload:
    inputs = torch.randn(64, 4, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs.mean((1, 2)) > 0).long())
    return Workload(network(), data, data, data, data, inputs[:1])


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.1] * 5),
        (
            "cosine",
            [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5)), 0.0],
        ),  # (1 + cos(pi t / 4)) / 2
    ],
)
def test_learning_rates_by_hand(schedule, rates):
    recovery = Recovery(1, 0.1, schedule=schedule)
    optimizer = optimizer_of(list(network().parameters()), recovery)
    following = schedule_of(optimizer, recovery, 4)
    found = []
    for _ in rates:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        following.step()
    assert found == pytest.approx(rates, abs=1e-9)


def test_one_cycle_rises_to_its_peak_and_ends_near_zero():
    optimizer = optimizer_of(list(network().parameters()), Recovery(1, 0.1))
    following, found = schedule_of(optimizer, Recovery(1, 0.1), 100), []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        following.step()
    assert max(found) == pytest.approx(0.1, rel=1e-3)
    assert found[0] == pytest.approx(0.1 / 25)  # Smith & Topin 2018, as torch has it
    assert found[-1] < 0.1 / 1e4
    assert found.index(max(found)) in (28, 29, 30)


def test_early_stopping_waits_and_goes_back_to_the_best_weights():
    model, stopping = nn.Linear(1, 1), EarlyStopping(2)
    ended = []
    for loss in (3.0, 2.0, 2.5, 2.0, 1.0):  # as good as the best is no better
        model.weight.data.fill_(loss)
        ended.append(stopping.is_over(model, loss))
    assert ended == [False, False, False, True, False]
    stopping = EarlyStopping(2)
    for loss in (3.0, 2.0, 2.5):
        model.weight.data.fill_(loss)
        stopping.is_over(model, loss)
    stopping.restore(model)
    assert model.weight.item() == 2.0


def test_in_mutual_learning_both_imitate_one_another_and_the_teacher_teaches_one(workload):
    temperature, alpha = 2.0, 0.25
    recovery = Recovery(1, 0.1, temperature=temperature, alpha=alpha, mutual=True)
    training = _Training(network(1), workload, recovery, 16, ())
    inputs, targets = (tensor[:16] for tensor in workload.train.tensors)
    own, peer, taught = (model(inputs) for model in (training.student, training.peer, workload.model))

    def imitation(student, teacher):
        soft = (teacher / temperature).softmax(-1)
        return temperature**2 * (soft * (soft.log() - (student / temperature).log_softmax(-1))).sum(-1).mean()

    expected = alpha * imitation(own, taught) + (1 - alpha) * functional.cross_entropy(own, targets)
    expected = expected + imitation(own, peer) + functional.cross_entropy(peer, targets) + imitation(peer, own)
    assert not torch.equal(own, peer)
    assert training._loss(inputs, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def trained(workload: Workload, **settings) -> nn.Module:
    student = copy.deepcopy(network(1))
    train(student, workload, Recovery(2, 0.05, **settings), 2, seed=3, batch_size=16)
    return student


def test_mixed_precision_is_bfloat16_where_the_machine_has_it_and_else_left_out_with_a_word(workload, caplog):
    with caplog.at_level(logging.WARNING):
        mixed = trained(workload, mixed_precision=True)
    has = precision_of(torch.device("cpu")) is not None
    assert ("mixed precision left out" in caplog.text) != has
    assert torch.equal(mixed[1].weight, trained(workload)[1].weight) != has


def test_in_mixed_precision_the_loss_is_that_of_a_forward_pass_in_bfloat16(workload):
    training = _Training(network(1), workload, Recovery(1, alpha=0.0), 16, ())
    inputs, targets = (tensor[:16] for tensor in workload.train.tensors)
    exact = training._loss(inputs, targets).item()
    training.computing.precision = torch.bfloat16
    half = copy.deepcopy(training.student).bfloat16()
    expected = functional.cross_entropy(half(inputs.bfloat16()).float(), targets).item()
    assert training._loss(inputs, targets).item() == pytest.approx(expected, rel=1e-3)
    assert training._loss(inputs, targets).item() != exact


def test_training_that_diverges_says_so_with_its_learning_rate(workload):
    with pytest.raises(
        CompressionError, match=r"^training diverged: \S+ is not finite after 1 epoch at learning_rate 1e\+20"
    ):
        train(network(1), workload, Recovery(2, 1e20, schedule="constant"), 2, seed=0, batch_size=16)


def test_early_stopping_ends_a_diverging_training_at_its_last_good_weights():
    model, stopping = nn.Linear(1, 1), EarlyStopping(3)
    assert not stopping.is_over(model, 1.0)
    good = model.weight.item()
    model.weight.data.fill_(math.nan)
    assert stopping.is_over(model, math.nan)
    stopping.restore(model)
    assert model.weight.item() == good


def test_a_model_that_was_left_without_numbers_is_refused_by_the_weight_s_name():
    model = network()
    require_finite(model)
    model[3].bias.data[1] = math.inf
    with pytest.raises(CompressionError, match=r"left 3\.bias with NaN or infinite numbers"):
        require_finite(model)
