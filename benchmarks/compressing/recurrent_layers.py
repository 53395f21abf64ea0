"""Hidden units removed from trained recurrent networks: accuracy without recovery, and time against the runtime's default deployment.

    python benchmarks/compressing/recurrent_layers.py gru-25 gru-100 lstm-100
    python benchmarks/compressing/recurrent_layers.py gru-400 --untrained

The networks name one of twelve words, tracks of two formants over forty bands at random speed in noise. Every policy is lowered for
OpenVINO, in its default precision, and for ONNX Runtime; each artifact runs in turn with that of the uncompressed model, and the
median of the paired ratios is the speed-up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from slimfront.compression.compress import rounded_model
from slimfront.compression.pruning.proof import proven_groups
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import Session, get_runtime
from slimfront.spaces.models.layers import macs_by_module
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import Policy
from slimfront.spaces.policies.pruning import Pruning
from slimfront.workloads.load import adopt_workload
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset

BANDS, WORDS = 40, 12
NETWORKS = {
    "gru-25": (25, {"kind": nn.GRU, "hidden": 192}),
    "gru-100": (100, {"kind": nn.GRU, "hidden": 192}),
    "gru-400": (400, {"kind": nn.GRU, "hidden": 192}),
    "wide-lstm-100": (100, {"kind": nn.LSTM, "hidden": 256}),
    "lstm-100": (100, {"kind": nn.LSTM, "hidden": 64, "layers": 2, "bidirectional": True}),
}
RUNS = 60


class Listener(nn.Module):
    """A recurrent network over [n, steps, 40]; the classifier reads the last step, or the mean over steps of both directions."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.rnn = kind(BANDS, hidden, layers, batch_first=True, bidirectional=bidirectional)  # pyright: ignore
        self.fc = nn.Linear(hidden * (2 if bidirectional else 1), WORDS)

    def forward(self, sound: Tensor) -> Tensor:
        states, _ = self.rnn(sound)
        return self.fc(states.mean(1) if self.rnn.bidirectional else states[:, -1])


def words(count: int, steps: int, seed: int) -> TensorDataset:
    """Spoken words, so to say: two formants with four knots each, at random speed, start and pitch, in noise."""
    chance, shapes = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
    knots = torch.rand(WORDS, 2, 4, generator=shapes) * BANDS
    labels = torch.randint(WORDS, (count,), generator=chance)
    start, length = torch.rand(2, count, 1, generator=chance) * torch.tensor([0.3, 0.2])[:, None, None]
    moment = (torch.linspace(0, 1, steps)[None] - start) / (0.5 + length)
    place = (moment.clamp(0, 1) * 3)[:, None]
    left = place.floor().clamp(max=2).long().expand(count, 2, steps)
    before, after = knots[labels].gather(2, left), knots[labels].gather(2, left + 1)
    centre = before + (after - before) * (place - left) + 1.5 * torch.randn(count, 2, 1, generator=chance)
    peaks = torch.exp(-0.5 * ((torch.arange(BANDS) - centre[..., None]) / 1.5) ** 2)
    spoken = (peaks * ((moment >= 0) & (moment <= 1))[:, None, :, None]).sum(1)
    return TensorDataset(spoken + 0.45 * torch.randn(count, steps, BANDS, generator=chance), labels)


def workload(network: str, epochs: int) -> Workload:
    """A network trained on its words."""
    torch.manual_seed(0)
    steps, options = NETWORKS[network]
    model, train = Listener(**options), words(2000, steps, 0)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, max(epochs, 1) * 32)
    for _ in range(epochs):
        for batch in torch.randperm(len(train)).split(64):
            sounds, labels = train[batch.tolist()]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(sounds), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    splits = [words(count, steps, seed) for seed, count in enumerate((200, 500, 500), start=1)]
    return adopt_workload(Workload(model.eval(), train, *splits, train[0][0][None]), network, Path())


def policies(kind: type[nn.RNNBase], names: list[str]) -> dict[str, Policy]:
    """What is compared, by name."""
    stored, multiplied = (dict.fromkeys(names, choice) for choice in ("int8", "dynamic"))
    made_up_for = Pruning(reduction="reconstruct")
    found = {
        "whole": Policy(),
        "int8": Policy(recurrent=stored),
        "half, dropped": Policy(0.5),
        "half, reconstructed": Policy(0.5, pruning=made_up_for),
        "half, reconstructed, int8": Policy(0.5, pruning=made_up_for, recurrent=stored),
        "quarter, reconstructed": Policy(0.25, pruning=made_up_for),
    }
    return found | ({"dynamic": Policy(recurrent=multiplied)} if kind is nn.LSTM else {})


def session_of(candidate: Candidate, example: Tensor, runtime: str, path: Path) -> tuple[Session, float, int]:
    """The loaded artifact, the seconds of lowering it and its bytes."""
    target, start = load_target(f"cpu-{runtime}"), time.perf_counter()
    artifact = get_runtime(runtime).lower(candidate, example, target, path)
    seconds = time.perf_counter() - start
    return get_runtime(runtime).load(path, target, threads=1), seconds, artifact.bytes


def paired(first: Session, second: Session, inputs: np.ndarray) -> tuple[float, float]:
    """Milliseconds of `first`, and the median of the ratios first / second of runs in turn, each as often the first of its pair."""
    rounds = [[_seconds(session, inputs) for session in order] for order in [(first, second), (second, first)] * RUNS]
    times = np.array([pair if number % 2 == 0 else pair[::-1] for number, pair in enumerate(rounds)])[RUNS // 3 :]
    return float(np.median(times[:, 0])) * 1e3, float(np.median(times[:, 0] / times[:, 1]))


def _seconds(session: Session, inputs: np.ndarray) -> float:
    start = time.perf_counter()
    session.run({"input": inputs})
    return time.perf_counter() - start


def compare(network: str, epochs: int, folder: Path) -> None:
    """Print a row for each policy and runtime."""
    task = workload(network, epochs)
    names = [name for name, module in task.model.named_modules() if isinstance(module, nn.RNNBase)]
    groups, refused = proven_groups(task)
    print(f"{network}: groups {[(g.name, g.channels) for g in groups]}, left out {list(refused)}")
    sounds, labels = words(500, NETWORKS[network][0], 3).tensors
    references: dict[str, Session] = {}
    for name, policy in policies(NETWORKS[network][1]["kind"], names).items():
        slim = pruned_copy(task.model, task.example_input, policy, groups, task)
        candidate = make_candidate(slim, task.example_input, policy, task.calibration)
        with torch.no_grad():
            accuracy = float((rounded_model(candidate)(sounds).argmax(1) == labels).float().mean())
        flops = macs_by_module(slim, task.example_input)[""]
        for runtime in ("openvino", "onnxruntime"):
            if "dynamic" in policy.recurrent.values() and runtime == "openvino":
                continue
            deployed = replace(policy, float_precision="default" if runtime == "openvino" else "float32")
            held = replace(candidate, policy=deployed)
            path = folder / f"{network}-{name}-{runtime}.onnx".replace(" ", "")
            session, lowered_s, size = session_of(held, task.example_input, runtime, path)
            reference = references.setdefault(runtime, session)
            milliseconds, ratio = paired(session, reference, task.example_input.numpy())
            print(
                f"| {network} | {name} | {runtime} | {accuracy:.3f} | {flops / 1e6:.1f} M | {size / 1e3:.0f} kB | "
                f"{lowered_s:.2f} s | {milliseconds:.3f} ms | {1 / ratio:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--untrained", action="store_true", help="times only: accuracies are chance")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.networks:
            compare(network, 0 if arguments.untrained else 8, Path(folder))


if __name__ == "__main__":
    main()
