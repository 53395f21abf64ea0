"""A recovery trained by two processes over gloo, as one is by several GPUs over NCCL: the same weights, and no rank fails unnoticed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from slimfront.compression.rank_processes import RankProcesses
from slimfront.compression.ranks import Ranks
from slimfront.compression.recovery.checkpoint import Checkpoints
from slimfront.core.errors import CompressionError
from slimfront.core.threads import torch_threads
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.search.trials.training.recoveries import Recoveries
from slimfront.search.trials.worker_setup import WorkerSetup
from slimfront.spaces.policies.policy import Policy, Recovery
from slimfront.studies.study_file.parts import RungsSpec
from torch import Tensor, nn

WORKLOAD = '''
import os

import torch
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import Dataset


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(128, 5)
        # Neither a parameter nor a buffer, and another number in each process.
        self.scale = 1 + torch.rand(1, generator=torch.Generator().manual_seed(os.getpid()))

    def forward(self, x):
        return self.scale * self.fc(self.norm(self.conv(x)).relu().flatten(1))


class Shifted(Dataset):
    """Images that are shifted at random as they are read."""

    def __init__(self):
        drawn = torch.Generator().manual_seed(0)
        self.images, self.classes = torch.randn(72, 3, 6, 6, generator=drawn), torch.randint(5, (72,), generator=drawn)

    def __len__(self):
        return 72

    def __getitem__(self, index):
        return self.images[index] + 0.1 * torch.rand(1), int(self.classes[index])


def workload():
    torch.manual_seed(0)
    data = Shifted()
    return Workload(Network().eval(), data, data, data, data, data.images[:1])
'''
MARKS = (1.0, 3.0)
POLICY = Policy(recovery=Recovery(3, 0.05, accumulate=2, patience=3))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture
def recoveries(tmp_path: Path) -> Recoveries:
    (tmp_path / "own.py").write_text(WORKLOAD)
    target = load_target("cpu-openvino")
    reference = f"{tmp_path}/own.py:workload"
    return Recoveries.of(WorkerSetup(reference, {}, tmp_path, target, (), 0, batch_size=16, rungs=RungsSpec()))


def trained(recoveries: Recoveries, folder: Path) -> Iterator[tuple[nn.Module | None, float]]:
    torch.manual_seed(1)
    student = type(recoveries.workload.model)().eval()
    yield from recoveries.run(POLICY, student, MARKS, None, Checkpoints(folder, 0.0))


def weights(model: nn.Module | None) -> Tensor:
    assert model is not None
    return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])


def at_rungs(made: Iterator[tuple[nn.Module | None, float]]) -> dict[float, Tensor]:
    return {epochs: weights(model) for model, epochs in made if model is not None}


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_after_one_was_killed(
    recoveries: Recoveries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batch-norm, accumulation, early stopping and augmentation."""
    alone = at_rungs(trained(recoveries, tmp_path / "alone"))
    monkeypatch.setattr(Recoveries, "processes", 2)
    codes, end = [], RankProcesses._end

    def note_codes(processes: RankProcesses) -> None:
        codes.extend(process.exitcode for process in processes._processes)
        end(processes)

    with monkeypatch.context() as patched:
        patched.setattr(RankProcesses, "_end", note_codes)
        together = at_rungs(trained(recoveries, tmp_path / "together"))
    assert codes == [0, 0], "ranks leave their group and end by themselves"
    assert alone.keys() == together.keys() == set(MARKS)
    for epochs in MARKS:
        torch.testing.assert_close(together[epochs], alone[epochs], rtol=1e-5, atol=1e-6)

    made = trained(recoveries, tmp_path / "killed")
    assert next(made)[0] is None, "the first step is saved"
    ranks = sorted(psutil.Process().children(), key=psutil.Process.create_time)[-2:]
    os.kill(ranks[1].pid, signal.SIGKILL)
    with pytest.raises(
        CompressionError, match="process 2 of the 2 that train together failed: it ended with exit code -9"
    ):
        for _ in made:
            pass
    assert not [child for child in ranks if child.is_running()]
    rest = at_rungs(trained(recoveries, tmp_path / "killed"))
    assert torch.equal(rest[3.0], together[3.0])


def _fails(folder: Path) -> Iterator[tuple[nn.Module | None, float]]:
    yield nn.Identity(), 1.0
    (folder / f"rank-{Ranks.here().rank}").touch()
    if Ranks.here().rank == 1:
        raise ValueError("the second has no such file")
    torch.distributed.barrier()


def test_all_ranks_wait_while_a_model_is_scored_and_one_that_fails_says_why(tmp_path: Path) -> None:
    made = RankProcesses(partial(_fails, tmp_path), 2, "cpu").run()
    next(made)
    time.sleep(0.5)
    assert not [*tmp_path.iterdir()], "within its next step a rank would keep a timing off its GPU"
    with pytest.raises(CompressionError, match=r"process 2 of the 2 that train together failed: .*no such file"):
        next(made)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_ranks_share_every_batch(count: int) -> None:
    samples, size = list(range(20)), 6
    shares = [Ranks(rank, count).share(samples, size) for rank in range(count)]
    own = size // count
    for batch in range(3):
        parts = [sample for share in shares for sample in share[batch * own : (batch + 1) * own]]
        assert parts == samples[batch * size : (batch + 1) * size]
