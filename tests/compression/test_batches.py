"""Batches of a data set: their order, their size, and that the same seed shuffles alike."""

import pytest
import torch
from slimfront.compression.batches import input_batches, labelled_batches
from slimfront.core.batch import HOST
from torch.utils.data import DataLoader, TensorDataset


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count), torch.arange(count) * 10)


def order(data, seed: int | None) -> list[int]:
    return [int(value) for inputs, _ in labelled_batches(data, 4, HOST, shuffle_seed=seed) for value in inputs]


def test_the_order_is_that_of_torchs_loader_with_the_seed() -> None:
    loader = DataLoader(numbers(24), 4, shuffle=True, generator=torch.Generator().manual_seed(3))
    ours = labelled_batches(numbers(24), 4, HOST, shuffle_seed=3)
    for _ in range(2):
        assert [inputs.tolist() for inputs, *_ in ours] == [inputs.tolist() for inputs, *_ in loader]


def test_batches_come_in_order_and_hold_every_sample():
    batches = list(labelled_batches(numbers(10), 4, HOST))
    assert [inputs.tolist() for inputs, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches[2][1].tolist() == [80, 90]


def test_the_same_seed_shuffles_alike_and_another_differently():
    data = numbers(40)
    assert order(data, 1) == order(data, 1) != order(data, 2)
    assert sorted(order(data, 1)) == list(range(40))


def test_every_pass_of_a_shuffled_loader_has_another_order():
    batches = labelled_batches(numbers(40), 40, HOST, shuffle_seed=0)
    (first, _), (second, _) = next(iter(batches)), next(iter(batches))
    assert first.tolist() != second.tolist()


def test_shuffling_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    iterator = iter(labelled_batches(numbers(8), 4, HOST, shuffle_seed=3))
    next(iterator)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (11, [4, 4]), (3, [3])])
def test_training_and_statistics_see_full_batches_where_there_are_any(count, sizes):
    assert [len(inputs) for inputs in input_batches(numbers(count), 4, HOST)] == sizes
    assert [len(inputs) for inputs, _ in labelled_batches(numbers(count), 4, HOST, shuffle_seed=0)] == sizes
