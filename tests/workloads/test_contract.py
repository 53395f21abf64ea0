"""What one sample cannot show of a workload: answers that change, and samples that are no numbers or classes."""

import random
import time
from dataclasses import replace

import pytest
import torch
from slimfront.core.errors import WorkloadError
from slimfront.workloads.adapt import adapted
from slimfront.workloads.contract import held
from slimfront.workloads.workload import Workload
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(40) % 3


class Net(nn.Module):
    """A linear layer, and what a test does to its outputs."""

    def __init__(self, change=lambda model, inputs, outputs: outputs) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.change = nn.Linear(6, 3), change
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, inputs):
        return self.change(self, inputs, self.layer(inputs))


class Read(Dataset):
    """Samples made one by one."""

    def __init__(self, item, size=40) -> None:
        self.item, self.size = item, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.item(index)


def workload(model=None, **changes):
    data = {split: TensorDataset(INPUTS, TARGETS) for split in ("train", "calibration", "validation", "test")}
    return Workload(model or Net(), example_input=INPUTS[:1], name="mine", **data | changes)


def one_by_one(at, inputs=None, target=None):
    """The data with sample `at` another."""
    other = INPUTS[at] if inputs is None else inputs, int(TARGETS[at]) if target is None else target
    return Read(lambda index: other if index == at else (INPUTS[index], int(TARGETS[index])))


def tensors(at, inputs=None, target=None):
    xs, ys = INPUTS.clone(), TARGETS.clone()
    if inputs is not None:
        xs[at] = inputs
    if target is not None:
        ys[at] = target
    return TensorDataset(xs, ys)


def early_exit(model, inputs, outputs):
    return outputs if outputs.softmax(1).max() > 0.5 else 2 * outputs


def counting(model, inputs, outputs):
    model.calls += 1
    return outputs * model.calls


MODELS = {
    "dropout": (
        lambda model, inputs, outputs: functional.dropout(outputs),
        "it draws random numbers in evaluation mode",
    ),
    "python's random": (lambda model, inputs, outputs: outputs * random.random(), "or draws numbers from random"),
    "state": (counting, "it changes a state of its own in forward"),
    "early exit": (
        early_exit,
        "model decides by its data: forward reads a number out of a tensor at test_contract.py:",
    ),
    "mean of the batch": (
        lambda model, inputs, outputs: outputs - outputs.mean(0),
        "the answer on a sample depends on the rest of its batch",
    ),
    "one sample only": (
        lambda model, inputs, outputs: outputs.view(1, 3),
        "runs on one sample and not on a batch of 4",
    ),
    "one answer a batch": (lambda model, inputs, outputs: outputs[:1], "model must return one row a sample"),
}


@pytest.mark.parametrize(("change", "problem"), MODELS.values(), ids=MODELS.keys())
def test_a_model_whose_answers_cannot_be_relied_on_is_refused(change, problem):
    with pytest.raises(WorkloadError) as caught:
        held(workload(Net(change)))
    assert str(caught.value).startswith("workload mine: model")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_nothing_but_functions_is_refused():
    with pytest.raises(
        WorkloadError, match=r"^workload mine: model has no parameters: there is nothing in it to compress$"
    ):
        held(workload(nn.Sequential(nn.Flatten(), nn.ReLU())))


HARMLESS = {
    "check of its inputs": lambda model, inputs, outputs: outputs if inputs.isfinite().all() else 1 / 0,
    "call counter": lambda model, inputs, outputs: (model.calls.add_(1), outputs)[1],
    "number of its own": lambda model, inputs, outputs: outputs * model.layer.weight[0, 0].item(),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_model_that_only_looks_unreliable_is_taken(change):
    model = Net(change)
    held(workload(model))
    assert model.calls == 0, "it runs on a copy"


def test_batch_norm_of_the_batch_is_named():
    model = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4, track_running_stats=False))
    model = nn.Sequential(model, nn.Flatten(), nn.Linear(16, 3))
    (remark,) = held(workload(model)).remarks
    assert remark.startswith("0.2: batch-norm without running statistics")


SAMPLES = {
    "NaN": ({"inputs": torch.full((6,), torch.nan)}, "input holds NaN; repair it"),
    "infinity": ({"inputs": torch.full((6,), torch.inf)}, "input holds an infinity; repair it"),
    "ignored class": ({"target": 255}, "target must be a class from 0 to 2, the model's outputs, not "),
    "negative class": ({"target": -1}, "target must be a class from 0 to 2, the model's outputs, not "),
}


@pytest.mark.parametrize("kind", [one_by_one, tensors])
@pytest.mark.parametrize("split", ["train", "calibration", "validation", "test"])
@pytest.mark.parametrize(("sample", "problem"), SAMPLES.values(), ids=SAMPLES.keys())
def test_a_bad_sample_is_found_with_its_split_and_index(kind, split, sample, problem):
    with pytest.raises(WorkloadError) as caught:
        held(adapted(workload(**{split: kind(33, **sample)})))
    assert str(caught.value).startswith(f"workload mine: {split}[33]'s {problem}")


def test_a_sample_of_another_size_or_that_cannot_be_read_is_found():
    with pytest.raises(
        WorkloadError,
        match=r"train\[7\]'s input must be torch.float32 \[6\], as in example_inputs, not torch.float32 \[5\]",
    ):
        held(adapted(workload(train=one_by_one(7, inputs=torch.zeros(5)))))
    broken = Read(lambda index: (INPUTS[index], int(TARGETS[index])) if index != 9 else [][0])
    with pytest.raises(WorkloadError, match=r"test\[9\] cannot be read: IndexError"):
        held(adapted(workload(test=broken)))


def mean_square(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def mean_square_of_known(outputs, targets):
    return ((outputs - targets.nan_to_num()) ** 2)[~targets.isnan()].sum()


@pytest.mark.parametrize("kind", [TensorDataset, lambda x, y: Read(lambda index: (x[index], y[index]))])
def test_targets_of_nan_are_refused_unless_the_loss_leaves_them_out(kind):
    targets = torch.zeros(40, 3)
    targets[5, 1] = torch.nan
    own = replace(workload(train=kind(INPUTS, targets)), metric=lambda outputs, targets: 0.0, loss=mean_square)
    with pytest.raises(WorkloadError, match=r"train\[5\]'s target holds NaN"):
        held(adapted(own))
    held(adapted(replace(own, loss=mean_square_of_known)))


def test_a_large_data_set_is_looked_at_in_part_and_the_rest_as_it_is_used():
    def slow(index):
        time.sleep(0.002)
        return INPUTS[index % 40] if index != 9999 else INPUTS[0] * torch.nan, 0

    own = held(adapted(workload(train=Read(slow, 10_000))), seconds=0.1)
    (remark,) = own.remarks
    assert " of 10,000 samples of train were looked at in 0.0 s; the others are as they are used" in remark
    with pytest.raises(WorkloadError, match=r"train\[9999\]'s input holds NaN"):
        own.train[9999]
