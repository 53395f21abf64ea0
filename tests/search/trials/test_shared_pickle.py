"""Large tensors of a pickled object are read where they lie; everything else is a copy."""

from __future__ import annotations

import pickle

import numpy as np
import torch
from slimfront.search.trials.shared_pickle import LEAST_BYTES, SharedPickle
from torch import nn

MANY = LEAST_BYTES // 4


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_large_tensors_and_arrays_share_memory_and_small_ones_do_not() -> None:
    model = nn.Sequential(nn.Linear(MANY, 1), nn.BatchNorm1d(1))
    model[0].weight.requires_grad_(False)
    made = SharedPickle.of({"model": model, "array": np.arange(MANY, dtype=np.int32), "again": model[0].weight})
    assert len(made.buffers) == 2
    found = made.load()
    weight = found["model"][0].weight
    assert {weight.data_ptr(), address(found["array"])} == {address(buffer) for buffer in made.buffers}
    assert found["again"] is weight  # tied weights stay tied
    assert isinstance(weight, nn.Parameter)
    assert not weight.requires_grad
    assert found["model"][0].bias.requires_grad
    for name, tensor in model.state_dict().items():
        assert torch.equal(found["model"].state_dict()[name], tensor), name
    found["model"][1].running_mean += 1  # its own
    assert not torch.equal(made.load()["model"][1].running_mean, found["model"][1].running_mean)


def test_a_copy_may_be_changed_and_survives_a_pipe() -> None:
    tensor = torch.zeros(MANY, dtype=torch.bfloat16).repeat(2)
    made = pickle.loads(pickle.dumps(SharedPickle.of(tensor)))
    made.load(copied=True).add_(1)
    assert torch.equal(made.load(), tensor)
