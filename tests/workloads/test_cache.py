"""Models trained once and read from the user's cache, and files in it that are damaged."""

import os
import subprocess
import sys

import pytest
import torch
from slimfront.core.defaults import cache_folder
from slimfront.core.errors import WorkloadError
from slimfront.workloads.cache import state_digest, trained_once
from torch import nn


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))
    return tmp_path / "weights"


class Trainer:
    """Trains at once, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def test_the_cache_is_the_users_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SLIMFRONT_CACHE", raising=False)
    assert cache_folder().name == "slimfront"
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"


def test_the_second_call_reads_what_the_first_one_wrote(cache):
    train = Trainer()
    first, second = trained_once("a.safetensors", train), trained_once("a.safetensors", train)
    assert train.calls == 1
    assert {name: tensor.tolist() for name, tensor in second.items()} == {"weight": [[0, 1, 2], [3, 4, 5]], "steps": 7}
    assert state_digest(first) == state_digest(second)


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def nothing(content: bytes) -> bytes:
    return b""


def other_bytes(content: bytes) -> bytes:
    return b"not safetensors at all"


@pytest.mark.parametrize("damage", [cut_off, flip_last_bit, nothing, other_bytes])
def test_a_corrupt_file_is_trained_again_and_says_so(cache, caplog, damage):
    train = Trainer()
    whole = state_digest(trained_once("a.safetensors", train))
    file = cache / "a.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert state_digest(trained_once("a.safetensors", train)) == whole
    assert train.calls == 2
    assert [record.getMessage() for record in caplog.records] == [f"{file} is corrupt; training it again"]
    trained_once("a.safetensors", train)
    assert train.calls == 2


def test_what_an_interrupted_write_left_behind_does_no_harm(cache):
    train = Trainer()
    cache.mkdir()
    (cache / "a.unfinished").write_bytes(b"half a fi")
    trained_once("a.safetensors", train)
    trained_once("a.safetensors", train)
    assert train.calls == 1
    assert not (cache / "a.unfinished").exists()


def test_training_that_fails_leaves_no_file_and_can_be_repeated(cache):
    def failing():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained_once("a.safetensors", failing)
    assert trained_once("a.safetensors", Trainer())["steps"] == 7


def test_a_cache_that_cannot_be_written_is_one_line_with_the_remedy(cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(
        WorkloadError, match=r"a\.safetensors .*set SLIMFRONT_CACHE to a folder that can be written"
    ) as caught:
        trained_once("a.safetensors", Trainer())
    assert "\n" not in str(caught.value)


TRAIN_SLOWLY = """
import sys, time, torch
from slimfront.workloads.cache import trained_once

def train():
    with open(sys.argv[1], "a") as log:
        log.write("trained\\n")
    time.sleep(3)
    return {"weight": torch.ones(3)}

assert trained_once("a.safetensors", train)["weight"].tolist() == [1, 1, 1]
"""


@pytest.mark.slow
def test_of_two_processes_at_once_only_one_trains(tmp_path):
    log = tmp_path / "log"
    environment = os.environ | {"SLIMFRONT_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", TRAIN_SLOWLY, str(log)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert log.read_text() == "trained\n"


def test_the_digest_sees_values_names_types_and_shapes_but_not_order_or_strides():
    weight = torch.arange(6.0).reshape(2, 3)
    digest = state_digest({"a": weight, "b": torch.tensor(1)})
    assert digest == state_digest({"b": torch.tensor(1), "a": weight.t().contiguous().t()})
    others = (
        {"a": weight + torch.eye(2, 3), "b": torch.tensor(1)},
        {"c": weight, "b": torch.tensor(1)},
        {"a": weight.double(), "b": torch.tensor(1)},
        {"a": weight.reshape(3, 2), "b": torch.tensor(1)},
    )
    assert len({digest, *map(state_digest, others)}) == 5


def test_the_digest_of_a_half_precision_model():
    model = nn.Linear(2, 2).to(torch.bfloat16)
    assert state_digest(model.state_dict()) != state_digest(model.float().state_dict())
