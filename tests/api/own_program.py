"""A program as a user writes it in one file: a model of its own, a metric, a criterion, two searches, and what follows."""

import slimfront
import torch
from slimfront.search.events import TrialFinished
from torch import nn
from torch.utils.data import TensorDataset


class Tones(nn.Module):
    """Tells apart two frequencies in a signal of 64 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 16, 9, padding=4), nn.Conv1d(16, 16, 9, padding=4)
        self.classify = nn.Linear(16, 2)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.classify(self.second(self.first(signal).relu()).relu().mean(2))


class Largest:
    """The largest weight of a channel, whatever the others are."""

    needs_gradients = False

    def channels(self, group, name, scoring):
        weight = group[0].dep.target.module.weight.detach()
        return weight.abs().flatten(1).amax(1)[group[0].idxs]

    def weights(self, weight, name, scoring):
        return weight.detach().abs()

    def heads(self, attention, name, scoring):
        raise NotImplementedError


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return (outputs.argmax(1) == targets).float().mean().item()


def tones(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 2
    time = torch.arange(64) / 64
    phase = torch.rand(count, 1, generator=generator) * 6
    signals = torch.sin(6.28 * (4 + 6 * classes[:, None]) * time + phase)
    return TensorDataset((signals + 0.3 * torch.randn(count, 64, generator=generator))[:, None], classes)


torch.manual_seed(0)
model, train = Tones(), tones(256, 0)
optimizer = torch.optim.Adam(model.parameters(), 0.01)
for _ in range(60):
    loss = nn.functional.cross_entropy(model(train.tensors[0]), train.tensors[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
splits = tones(64, 1), tones(200, 2), tones(200, 3)
workload = slimfront.Workload(model, train, *splits, example_input=train.tensors[0][:1], metric=accuracy)
slimfront.register_criterion("largest", Largest())

finished = []


def note(event: object) -> None:
    if isinstance(event, TrialFinished):
        finished.append(event.trial.number)


for workers, trials in (1, 2), (0, 4):  # over Ray, and on in a process of slimfront's own
    study = slimfront.search(
        workload,
        name="tones",
        objectives=["accuracy_drop", "packed_bytes"],
        space={"weight_bits": [8, 32], "channel_sparsity": [0, 0.5], "criterion": ["largest"]},
        budget=trials,
        workers=workers,
        sensitivity=False,
        callbacks=[note],
    )
assert sorted(finished) == [0, 1, 2, 3]
assert set(study.trials["state"]) == {"complete"}, study.trials["reason"].tolist()
best = study.best("packed_bytes", where="accuracy_drop <= 0.2")
assert not best.policy.is_uncompressed
slim = slimfront.compress(model, study.policy(best), workload)
inputs, targets = workload.validation.tensors
with torch.no_grad():
    assert abs(accuracy(slim(inputs), targets) - best.measurements["accuracy"].value) <= 0.02
assert sum(p.numel() for p in slim.parameters()) <= sum(p.numel() for p in model.parameters())
assert model.training  # the user's own model is left as it was
bundle = study.export("bundle", best)
found = study.verify(bundle, workload)
broken = {check.claim for check in found.checks if check.holds is False}
print("holds" if broken <= {"speedup"} else found)  # which a busy second may spoil
