"""A recovery that is ended anywhere goes on from its checkpoint to the weights of one that was not, bit for bit."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slimfront.compression.compress import pruned_in_recovery
from slimfront.compression.pruning.proof import proven_groups
from slimfront.compression.recovery.checkpoint import Checkpoint, Checkpoints
from slimfront.compression.recovery.recover import recover, recover_by_rungs
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.pruning import Pruning
from slimfront.workloads.cache import state_digest
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

EVERY = 3
"""Steps between two checkpoints here, where time is not to decide."""

SAMPLES, BATCH = 80, 16


class Ended(BaseException):
    """What ends the process, as far as these tests can."""


class Augmented(Dataset):
    """Samples that are shifted at random as they are read; reading one more than `left` ends the training."""

    def __init__(self, samples: TensorDataset) -> None:
        self.samples, self.read, self.left = samples, 0, 10**9

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.left == 0:
            raise Ended
        self.left -= 1
        self.read += 1
        inputs, target = self.samples[index]
        return inputs + 0.1 * torch.rand(()), target


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.ReLU(),
        nn.Dropout(0.2),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3)).eval()


def task() -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 1, 4, 4, generator=generator)
    data = TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())
    return Workload(network(), Augmented(data), data, data, data, inputs[:1])


POLICY = Policy(layers={"3": LayerPolicy(8, 8, sparsity=0.5)}, channels={"0": 0.5}, recovery=Recovery(4, 0.05))
CASES = {
    "plain": {},
    "adamw, a cosine, early stopping": {"optimizer": "adamw", "schedule": "cosine", "patience": 2},
    "adafactor, a constant rate": {"optimizer": "adafactor", "schedule": "constant"},
    "mutual, features": {"mutual": True, "distiller": "feature"},
    "quantization-aware": {"steps": ("prune", "train", "quantize", "train")},
    "pruned late": {"steps": ("quantize", "train", "prune", "train")},
    "lasso": {"steps": ("lasso", "prune", "train")},
    "admm": {"steps": ("admm", "prune", "train")},
    "gradual": {},
}


@pytest.fixture(autouse=True)
def steps_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every few steps, however long those take."""
    asked = [0]

    def is_due(_: Checkpoint) -> bool:
        asked[0] += 1
        return asked[0] % EVERY == 0

    monkeypatch.setattr(Checkpoint, "is_due", property(is_due))


def recovered(workload: Workload, policy: Policy, folder: Path | None) -> nn.Module:
    groups, _ = proven_groups(workload)
    checkpoints = None if folder is None else Checkpoints(folder, 1)

    def prune(model: nn.Module) -> nn.Module:
        return pruned_in_recovery(model, workload, policy, groups, 0, BATCH, checkpoints)

    first = policy.recovery.steps[0] == "prune"
    model = prune(workload.model) if first else workload.model
    return recover(model, workload, policy, 0, BATCH, prune, groups, checkpoints)


@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_to_the_same_weights_wherever_it_is_ended(name: str, tmp_path: Path) -> None:
    policy = replace(POLICY, recovery=replace(POLICY.recovery, **CASES[name]))
    if name == "gradual":
        policy = replace(policy, pruning=Pruning(steps=2))
    undisturbed = task()
    expected = state_digest(recovered(undisturbed, policy, None).state_dict())
    ends = (7, 60, 50, 70)  # samples that each process in a row reads
    workload = task()
    for read in ends:
        workload.train.left = read
        with pytest.raises(Ended):
            recovered(workload, policy, tmp_path)
    workload.train.left = 10**9
    assert state_digest(recovered(workload, policy, tmp_path).state_dict()) == expected
    again = workload.train.read - undisturbed.train.read
    assert again <= len(ends) * (EVERY + 1) * BATCH  # and the batch that was being read


def test_a_recovery_that_was_stopped_at_a_rung_goes_on_there(tmp_path: Path) -> None:
    policy, marks = Policy(recovery=Recovery(4, 0.05)), (0.5, 2)

    def rungs(workload: Workload, folder: Path | None) -> Iterator[tuple[float, str]]:
        checkpoints = None if folder is None else Checkpoints(folder, 1)
        student = copy.deepcopy(workload.model)
        for model, epochs in recover_by_rungs(student, workload, policy, 0, BATCH, marks, checkpoints):
            if model is not None:
                yield epochs, state_digest(model.state_dict())

    undisturbed, workload = task(), task()
    expected = list(rungs(undisturbed, None))
    assert [epochs for epochs, _ in expected] == [0.5, 2, 4]
    for index in (0, 1):  # the rung where it was stopped comes again, and those before it do not
        stopped = rungs(workload, tmp_path)
        assert next(stopped) == expected[max(0, index - 1)]
        if index:
            assert next(stopped) == expected[index]
        stopped.close()
    assert list(rungs(workload, tmp_path)) == expected[1:]
    assert workload.train.read == undisturbed.train.read


def test_a_checkpoint_that_cannot_be_read_is_said_and_the_training_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = state_digest(recovered(task(), POLICY, tmp_path).state_dict())
    (tmp_path / "training-1.pt").write_bytes(b"half of a fi")
    with caplog.at_level(logging.WARNING):
        assert state_digest(recovered(task(), POLICY, tmp_path).state_dict()) == expected
    assert "training-1.pt cannot be read, the training begins anew" in caplog.text


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    """A file that pickles a call is refused, as one that cannot be read."""
    torch.save({"steps": Path("made"), "is_over": False, "parts": {}}, tmp_path / "training-1.pt")
    assert Checkpoints(tmp_path, 1).next().restore({}) is None
