"""Batches of data sets that are read sample by sample: ahead by other processes, augmented, collated by the workload's own function."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slimfront.compression.batches import labelled_batches, shuffled_batches, subset
from slimfront.compression.recovery.train import train
from slimfront.core.batch import HOST
from slimfront.core.errors import WorkloadError
from slimfront.spaces.policies.policy import Recovery
from slimfront.workloads.load import adopt_workload
from slimfront.workloads.placement import placed
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import Dataset


class Noisy(Dataset):
    """Samples that draw from every generator there is each time they are read."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = torch.rand(1) + float(np.random.rand()) + random.random()
        return torch.full((3,), float(index)) + drawn, index % 2


def workload(**settings: Any) -> Workload:
    torch.manual_seed(0)
    data = Noisy()
    made = Workload(nn.Linear(3, 2), data, data, data, data, torch.zeros(1, 3), **settings)
    return adopt_workload(made, "noisy", Path.cwd())


def rows_of(task: Workload, epochs: int = 2, first: int = 0) -> torch.Tensor:
    batches = shuffled_batches(task.train, 5, HOST, 3)
    return torch.cat([inputs for ((inputs, _),) in islice(batches.after(first), epochs * len(batches) - first)])


def test_weights_are_the_same_with_and_without_processes_that_read_ahead() -> None:
    weights = []
    for workers in (0, 2):
        task = placed(workload(train_transform=lambda x: x * (1 + torch.rand(1))), "cpu", workers)
        student = nn.Linear(3, 2)
        student.load_state_dict(task.model.state_dict())
        train(student, task, Recovery(2, learning_rate=0.001), 2, 0, 5)
        weights.append(student.weight.detach().clone())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], workload().model.weight)


def test_each_epoch_augments_anew_and_the_training_draws_as_it_would_without() -> None:
    task = workload()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, second = rows_of(task).split(20)
    assert torch.equal(torch.rand(2), expected)
    assert not set(first.flatten().tolist()) & set(second.flatten().tolist())
    assert torch.equal(rows_of(task, 1), first)
    assert torch.equal(rows_of(task, 2, first=5), second[5:]), "training that goes on reads what it would have read"


def padded(pairs: list[tuple[Any, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.nn.functional.pad(inputs, (0, 3 - len(inputs))) for inputs, _ in pairs]
    return torch.stack(rows), torch.tensor([target for _, target in pairs])


class Ragged(Dataset):
    """Sequences of one to three numbers."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.ones(1 + index % 3, dtype=torch.float64), index % 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workloads_own_collation_makes_samples_and_batches(workers: int) -> None:
    data = Ragged()
    made = Workload(nn.Linear(3, 2), data, data, data, data, torch.zeros(1, 3), collate=padded)
    task = placed(adopt_workload(made, "ragged", Path.cwd()), "cpu", workers)
    assert task.validation[1][0].tolist() == [1, 1, 0]
    ((inputs, targets),) = labelled_batches(subset(task.train, [0, 1, 2, 3]), 4, HOST)
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert targets.tolist() == [0, 1, 0, 1]
    shuffled = islice(shuffled_batches(task.train, 5, HOST, 0).after(), 4)
    assert [len(batch) for ((batch, _),) in shuffled] == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"collate": lambda pairs: 1 / 0}, r"train\[0\] cannot be collated: ZeroDivisionError"),
        ({"collate": lambda pairs: pairs[0][0]}, r"train\[0\]: collate must return \(inputs, targets\), not torch"),
        ({"train_transform": lambda inputs: inputs[:2]}, r"train\[0\]'s input must be torch.float32 \[3\]"),
        ({"train_transform": lambda inputs: 1 / 0}, r"train\[0\]: train_transform raised ZeroDivisionError"),
    ],
)
def test_what_a_workload_brings_to_read_its_data_is_held_against_the_contract(settings: Any, problem: str) -> None:
    with pytest.raises(WorkloadError, match=problem):
        workload(**settings)
