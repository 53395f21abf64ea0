"""What a checkpoint costs a network of ResNet-50's size, and what a recovery that is killed trains again.

    python benchmarks/compressing/checkpoints.py --quick

The cost: seconds to save and to load, and the file's size, for two optimizers. What is lost: a process that recovers a small network is
killed (SIGKILL) at random steps and started anew until it comes to its end; its weights are compared bit for bit with those of a process
that nothing disturbed, and the steps of all processes are counted. `--quick` kills twice, otherwise twelve times.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

import torch
from slimfront.compression.recovery.checkpoint import Checkpoint, Checkpoints, RandomNumbers
from slimfront.compression.recovery.recover import recover
from slimfront.spaces.policies.policy import Policy, Recovery
from slimfront.workloads.cache import state_digest
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.models import resnet50

OPTIMIZERS = {
    "sgd, momentum": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9),
    "adamw": lambda weights: torch.optim.AdamW(weights, 0.001),
}
SAVES, EVERY_S, BATCH, EPOCHS, SAMPLES = 5, 0.2, 32, 4, 2048


class Counted(Dataset):
    """Samples that take a moment to read, as from a disk; each one read is a byte of a file, and the process is killed at one of them."""

    def __init__(self, file: Path, killed_at: int | None) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(SAMPLES, 3, 16, 16, generator=generator)
        self.samples = TensorDataset(images, (images.mean((1, 2, 3)) > 0).long())
        self.file, self.killed_at, self.is_counting = file.open("ab"), killed_at, False

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.is_counting:
            self.file.write(b".")
            self.file.flush()
            if self.killed_at is not None and self.file.tell() >= self.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.0005)
        return self.samples[index]


def cost(optimizer: str, folder: Path) -> dict[str, float]:
    """Medians of saving and loading a ResNet-50 in training, in seconds, and megabytes of the file."""
    model = resnet50()
    chosen = OPTIMIZERS[optimizer](model.parameters())
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    chosen.step()
    parts, checkpoint = {"student": model, "optimizer": chosen, "random": RandomNumbers()}, Checkpoint(folder / "a", 1)
    saving, loading = [], []
    for _ in range(SAVES):
        began = time.perf_counter()
        checkpoint.save(parts, steps=1, is_over=False)
        saving.append(time.perf_counter() - began)
        began = time.perf_counter()
        checkpoint.restore(parts)
        loading.append(time.perf_counter() - began)
    megabytes = (folder / "a").stat().st_size / 1e6
    return {"save_s": statistics.median(saving), "load_s": statistics.median(loading), "megabytes": megabytes}


def recovered(folder: Path, killed_at: int | None, every_s: float) -> None:
    """Recover the small network, and write the digest of its weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Counted(folder / "read", killed_at)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(3136, 2)]
    model = nn.Sequential(*layers).eval()
    workload = Workload(model, data, data, data, data, data.samples[0][0][None])
    data.is_counting = True
    policy = Policy(recovery=Recovery(EPOCHS, 0.01))
    student = recover(model, workload, policy, 0, BATCH, checkpoints=Checkpoints(folder / "checkpoints", every_s))
    (folder / "digest").write_text(state_digest(student.state_dict()))


def run(folder: Path, killed_at: int | None) -> bool:
    """Whether a process of its own came to the recovery's end."""
    process = multiprocessing.get_context("spawn").Process(target=recovered, args=(folder, killed_at, EVERY_S))
    process.start()
    process.join()
    return process.exitcode == 0


def killed(times: int, folder: Path) -> dict[str, object]:
    """Kill a recovery so many times, and compare it with one that was not."""
    (plain := folder / "plain").mkdir()
    (broken := folder / "killed").mkdir()
    began = time.perf_counter()
    assert run(plain, None)
    seconds = time.perf_counter() - began
    for at in sorted(random.Random(0).sample(range(BATCH, EPOCHS * SAMPLES), times)):
        assert not run(broken, at)
    assert run(broken, None)
    read = {each.name: (each / "read").stat().st_size for each in (plain, broken)}
    again = (read["killed"] - read["plain"]) / BATCH / times
    is_equal = (plain / "digest").read_text() == (broken / "digest").read_text()
    steps = EPOCHS * SAMPLES // BATCH
    return {"kills": times, "steps": steps, "seconds": seconds, "again_per_kill": again, "equal_bit_for_bit": is_equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="kill twice")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        costs = {optimizer: cost(optimizer, Path(name)) for optimizer in OPTIMIZERS}
        found = killed(2 if arguments.quick else 12, Path(name))
    for optimizer, figures in costs.items():
        print(f"{optimizer}: saved in {figures['save_s']:.2f} s, loaded in {figures['load_s']:.2f} s, "
              f"{figures['megabytes']:.0f} MB")  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in found.items()), f"(a checkpoint every {EVERY_S} s)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"cost": costs, "killed": found}, indent=1))


if __name__ == "__main__":
    main()
