"""The built-in digits workload: its splits, its network and its training."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from slimfront.workloads.builtin.digits import (
    DEVIATION,
    MEAN,
    Recipe,
    digits_datasets,
    digits_splits,
    reference_model,
    train_digits,
)
from slimfront.workloads.builtin.digits_model import DigitsResNet
from slimfront.workloads.builtin.digits_rnn import GRU, LSTM
from slimfront.workloads.cache import state_digest
from slimfront.workloads.load import load_workload
from torch import nn

QUICK = Recipe(epochs=1)


def test_splits_have_their_sizes_and_share_no_image():
    splits = digits_splits()
    assert {name: len(index) for name, index in splits.items()} == {
        "train": 897,
        "calibration": 100,
        "validation": 400,
        "test": 400,
    }
    assert sorted(np.concatenate(list(splits.values()))) == list(range(1797))


def test_splits_never_change():
    digest = hashlib.sha256()
    for name, index in sorted(digits_splits().items()):
        digest.update(name.encode() + index.astype("<i8").tobytes())
    assert digest.hexdigest() == "49e83477b397e38bf55ef1201857b13df0deae3ce7cceedcea35768e37d5b55f"


def test_every_split_has_each_class_in_proportion():
    targets = load_digits().target
    for index in digits_splits().values():
        expected = np.bincount(targets) * len(index) / 1797
        assert np.abs(np.bincount(targets[index]) - expected).max() <= 1


def test_items_are_normalised_16x16_images():
    data = digits_datasets()
    images, targets = data["train"].tensors
    assert images.shape == (897, 1, 16, 16)
    assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert images.mean().abs() < 1e-3
    assert (images.std() - 1).abs() < 1e-3
    # Bilinear without aligned corners: a corner pixel of the large image is the corner pixel of the small one.
    first = load_digits().images[digits_splits()["test"][0]]
    large = data["test"][0][0][0] * DEVIATION + MEAN
    np.testing.assert_allclose(
        large[[0, 0, -1, -1], [0, -1, 0, -1]], first[[0, 0, -1, -1], [0, -1, 0, -1]] / 16, atol=1e-6
    )


def test_the_network_has_sixteen_weight_layers_each_called_once():
    model, calls = DigitsResNet(), Counter()
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 16
    assert {"stem.conv", "blocks.0.conv1", "blocks.2.shortcut.conv", "fc"} <= set(layers)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 15
    assert set(calls.values()) == {1}


def test_parameters_of_the_network_by_hand():
    w = 8
    stem = 9 * w + 2 * w
    same = lambda c: 2 * 9 * c * c + 4 * c  # noqa: E731  two 3x3 convolutions with batch-norm
    down = lambda c: 9 * c * 2 * c + 9 * 4 * c * c + 2 * c * c + 3 * 4 * c  # noqa: E731  and a 1x1 one, c to 2c channels
    expected = stem + 2 * same(w) + down(w) + same(2 * w) + down(2 * w) + same(4 * w) + (4 * w + 1) * 10
    assert sum(parameter.numel() for parameter in DigitsResNet(w).parameters()) == expected


@pytest.mark.slow
def test_training_is_deterministic_leaves_the_caller_alone_and_shows_its_progress_on_stderr(capsys):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first = state_digest(train_digits(QUICK, progress=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "Training the digits resnet" in err
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert state_digest(train_digits(QUICK, progress=False)) == first
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_process_that_was_pinned_to_one_core_trains_as_fast_and_the_same_weights():
    recipe = Recipe("gru", epochs=2, optimizer="adamw", learning_rate=5e-3)
    code = f"""
import os, time
import torch
from slimfront.workloads.cache import state_digest
from slimfront.workloads.builtin.digits import Recipe, train_digits
torch.set_num_threads(2)
torch.rand(999, 999) @ torch.rand(999, 999)  # its threads have started
os.sched_setaffinity(0, {{max(os.sched_getaffinity(0))}})
began = time.process_time()
digest = state_digest(train_digits({recipe!r}, progress=False))
print(digest, time.process_time() - began)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    digest, seconds = ran.stdout.split()
    assert digest == state_digest(train_digits(recipe, progress=False))
    assert float(seconds) < 20  # a second; threads that spin for each other on one core take a hundred


@pytest.mark.slow
def test_a_trained_model_is_cached_bit_for_bit(monkeypatch, tmp_path):
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))
    trained = reference_model(QUICK, progress=False)
    file = tmp_path / "weights" / QUICK.file_name
    written = file.stat().st_mtime_ns
    again = reference_model(QUICK, progress=False)
    assert file.stat().st_mtime_ns == written
    assert not again.training
    for (name, first), (_, second) in zip(trained.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(first, second), name


def test_another_recipe_has_another_file():
    recipes = (Recipe(), QUICK, Recipe(seed=1), Recipe(version=2), Recipe(zoom=0.0))
    assert len({recipe.file_name for recipe in recipes}) == len(recipes)


@pytest.mark.slow
def test_the_trained_model_is_right_on_at_least_97_percent_of_the_test_split(digits_workload):
    assert digits_workload.name == "digits"
    digits_workload.check()
    images, targets = digits_workload.test.tensors
    with torch.inference_mode():
        right = digits_workload.model(images).argmax(1) == targets
    assert right.float().mean() >= 0.97


@pytest.mark.parametrize(("layer", "library"), [(GRU, nn.GRU), (LSTM, nn.LSTM)], ids=["gru", "lstm"])
def test_a_recurrent_layer_computes_what_the_library_does(layer, library):
    torch.manual_seed(0)
    own, theirs = layer(5, 8), library(5, 8, batch_first=True)
    with torch.no_grad():
        for gates, kind in ((own.from_input, "ih"), (own.from_state, "hh")):
            getattr(theirs, f"weight_{kind}_l0").copy_(torch.cat([gate.weight for gate in gates.values()]))
            getattr(theirs, f"bias_{kind}_l0").copy_(torch.cat([gate.bias for gate in gates.values()]))
    inputs = torch.randn(2, 7, 5)
    torch.testing.assert_close(own(inputs), theirs(inputs)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-vit", "digits-gru"])
def test_the_other_families_are_right_on_at_least_97_percent_of_the_test_split(name):
    workload = load_workload(name)
    images, targets = workload.test.tensors
    with torch.inference_mode():
        right = workload.model(images).argmax(1) == targets
    assert workload.name == name
    assert right.float().mean() >= 0.97
