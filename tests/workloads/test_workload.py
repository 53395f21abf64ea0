"""Workload.check: the contract of a user's workload, one breach at a time."""

from dataclasses import replace

import pytest
import torch
from slimfront.core.errors import WorkloadError
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


def data(samples=2, inputs=4, target=1):
    return TensorDataset(torch.zeros(samples, inputs), torch.full((samples,), target))


class Items(list):
    """A data set of whatever it is given."""


class Streams:
    def __iter__(self):
        return iter([])


class Breaks:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise KeyError("image 0 is missing")


@pytest.fixture
def workload():
    return Workload(nn.Linear(4, 3), data(), data(), data(), data(), torch.zeros(1, 4))


def two_outputs(inputs):
    return inputs, inputs


class TwoOutputs(nn.Module):
    def forward(self, inputs):
        return inputs, inputs


BREACHES = {
    "model": ({"model": two_outputs}, "model must be a torch.nn.Module, not function"),
    "scripted part": (
        {"model": nn.Sequential(torch.jit.script(nn.Linear(4, 3)))},
        "0 is compiled by TorchScript, which hides its layers; give the nn.Module it was made of",
    ),
    "metric name": ({"metric": "topp1"}, "metric must be one of top1, top5, f1, auroc"),
    "metric type": (
        {"metric": 3},
        "metric must be a name, a function of (outputs, targets) or a torchmetrics.Metric, not int",
    ),
    "loss": ({"loss": "mse"}, "loss must be None or a function, not str"),
    "example type": ({"example_input": [1.0]}, "example_inputs[0] must be a tensor, not float"),
    "example batch": (
        {"example_input": torch.zeros(2, 4)},
        "example_inputs must be a batch of one sample, shape [1, ...], not torch.float32 [2, 4]",
    ),
    "example shape": (
        {"example_input": torch.zeros(1, 5)},
        "model does not run on example_inputs torch.float32 [1, 5]: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    ),
    "outputs": (
        {"model": TwoOutputs()},
        "metric 'top1' needs one output, and there are output0, output1; outputs=['output0'] keeps one",
    ),
    "logits": (
        {"model": nn.Unflatten(1, (2, 2))},
        "metric 'top1' needs a model that returns logits [1, classes], not torch.float32 [1, 2, 2]",
    ),
    "too few classes": ({"metric": "top5"}, "metric 'top5' needs at least 5 classes; the model has 3"),
    "stream": ({"train": Streams()}, "train must be a map-style data set with a length, not Streams"),
    "empty": ({"validation": data(0)}, "validation is empty; it must hold at least one (input, target) pair"),
    "unreadable": ({"test": Breaks()}, "test[0] cannot be read: KeyError: 'image 0 is missing'"),
    "no pair": ({"train": Items([torch.zeros(4)])}, "train[0] must be an (input, target) pair, not torch.float32 [4]"),
    "other shape": (
        {"calibration": data(inputs=5)},
        "calibration[0]'s input must be torch.float32 [4], as in example_inputs, not torch.float32 [5]",
    ),
    "other type": (
        {"calibration": Items([(torch.zeros(4).int(), 0)])},
        "calibration[0]'s input must be torch.float32 [4], as in example_inputs, not torch.int32 [4]",
    ),
    "no tensor": (
        {"test": Items([("image.png", 0)])},
        "test[0]'s input must be torch.float32 [4], as in example_inputs, not str",
    ),
    "class too high": (
        {"test": data(target=3)},
        "test[0]'s target must be a class from 0 to 2, the model's outputs, not tensor(3)",
    ),
    "no class": (
        {"test": Items([(torch.zeros(4), 0.5)])},
        "test[0]'s target must be a class from 0 to 2, the model's outputs, not 0.5",
    ),
}


@pytest.mark.parametrize(("change", "line"), BREACHES.values(), ids=BREACHES.keys())
def test_each_breach_is_one_line(workload, change, line):
    with pytest.raises(WorkloadError) as caught:
        replace(workload, **change).check()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_model_is_chained(workload):
    with pytest.raises(WorkloadError) as caught:
        replace(workload, example_input=torch.zeros(1, 5)).check()
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    "target", [2, torch.tensor(2), torch.tensor(2, dtype=torch.uint8)], ids=["int", "tensor", "uint8"]
)
def test_a_class_is_any_whole_number(workload, target):
    replace(workload, test=Items([(torch.zeros(4), target)])).check()


def test_with_its_own_metric_the_outputs_shape_and_targets_are_the_users_affair(workload):
    own = replace(
        workload, model=nn.Identity(), metric=lambda outputs, targets: 1.0, test=Items([(torch.zeros(4), "cat")])
    )
    own.check()
    with pytest.raises(
        WorkloadError, match="loss must be given: cross-entropy reads one output, and there are output0, output1"
    ):
        replace(own, model=TwoOutputs()).check()
    replace(own, model=TwoOutputs(), outputs=["output1"]).check()


def test_checking_leaves_the_model_as_it_was(workload):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    replace(workload, model=model).check()
    assert model.training
    assert model[0].training
    assert model[0].num_batches_tracked == 0
