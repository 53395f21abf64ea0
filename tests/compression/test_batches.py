"""Batches of a data set: their order, their size, and that the same seed shuffles alike."""

from itertools import islice

import numpy as np
import pytest
import torch
from slimfront.compression.batches import input_batches, labelled_batches, shuffled_batches
from slimfront.core.batch import HOST
from torch.utils.data import Dataset, TensorDataset


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count), torch.arange(count) * 10)


def order(data, seed: int, first: int = 0, epochs: int = 1) -> list[int]:
    """The samples of the batches from number `first` on."""
    batches = shuffled_batches(data, 4, HOST, seed)
    steps = epochs * len(batches) - first
    return [int(value) for ((inputs, _),) in islice(batches.after(first), steps) for value in inputs]


def test_batches_come_in_order_and_hold_every_sample():
    batches = list(labelled_batches(numbers(10), 4, HOST))
    assert [inputs.tolist() for inputs, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches[2][1].tolist() == [80, 90]


def test_the_same_seed_shuffles_alike_and_another_differently():
    data = numbers(40)
    assert order(data, 1) == order(data, 1) != order(data, 2)
    assert sorted(order(data, 1)) == list(range(40))


def test_every_epoch_has_another_order():
    first, second = np.split(np.array(order(numbers(40), 0, epochs=2)), 2)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("first", [0, 3, 10, 13, 20])
def test_batches_go_on_anywhere_and_those_before_are_not_read(first: int):
    class Read(Dataset):
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[int, int]:
            self.read.append(index)
            return index, index

    data = Read()
    assert order(data, 5, first, 3) == order(numbers(40), 5, epochs=3)[4 * first :] == data.read


def test_shuffling_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(shuffled_batches(numbers(8), 4, HOST, 3).after())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (11, [4, 4]), (3, [3])])
def test_training_and_statistics_see_full_batches_where_there_are_any(count, sizes):
    assert [len(inputs) for inputs in input_batches(numbers(count), 4, HOST)] == sizes
    batches = shuffled_batches(numbers(count), 4, HOST, 0)
    assert [len(inputs) for ((inputs, _),) in islice(batches.after(), len(batches))] == sizes


@pytest.mark.parametrize(("count", "sizes"), [(24, [[4, 4], [4, 4], [4, 4]]), (22, [[4, 4], [4, 4]]), (6, [[4]])])
def test_a_step_of_several_batches_reads_the_samples_of_one_batch_of_their_size(count: int, sizes: list[list[int]]):
    several, one = shuffled_batches(numbers(count), 4, HOST, 0, 2), shuffled_batches(numbers(count), 8, HOST, 0)
    steps = list(islice(several.after(), 2 * len(several)))
    assert [[len(inputs) for inputs, _ in step] for step in steps] == 2 * sizes
    whole = [batch for (batch,) in islice(one.after(), len(steps))] if count >= 8 else []
    assert all(
        torch.equal(torch.cat([inputs for inputs, _ in step]), batch[0])
        for step, batch in zip(steps, whole, strict=False)
    )
    assert [step[0][0].tolist() for step in islice(several.after(3), 2)] == [
        step[0][0].tolist() for step in islice(several.after(), 3, 5)
    ]
