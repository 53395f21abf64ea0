"""A workload that trains in a second: which of two 8x8 patterns is there, for a network of four layers."""

import torch
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


class TinyNet(nn.Module):
    """Two convolutions around a residual addition, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu2(x + self.conv(x))
        return self.fc(self.pool(x).flatten(1))


class WordsNet(nn.Module):
    """A table of 60 words, one of 4 that is added to it, and three layers: [n, 6] -> [n, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(60, 16), nn.Embedding(4, 16)
        self.mix, self.mid, self.fc = nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(12, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.kinds(ids % 4)
        x = x + self.mix(x).relu()
        return self.fc(self.mid(x).relu().mean(1))


def words() -> Workload:
    """An untrained network of words: which of its outputs is larger."""
    torch.manual_seed(0)
    model, generator = WordsNet().eval(), torch.Generator().manual_seed(1)
    splits = []
    for count in (64, 16, 64, 64):
        ids = torch.randint(0, 60, (count, 6), generator=generator)
        splits.append(TensorDataset(ids, model(ids).argmax(1)))
    return Workload(model, *splits, splits[0].tensors[0][:1])


def _patterns(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 2
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.5
    images[classes == 1, :, ::2] += 1  # stripes
    return TensorDataset(images, classes)


def workload(broken_loss: bool = False) -> Workload:
    """The trained network and its four splits; `broken_loss` gives it a loss that raises, so that recovery fails."""
    torch.manual_seed(0)
    model = TinyNet()
    train = _patterns(128, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(train.tensors[0]), train.tensors[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Workload(
        model.eval(),
        train,
        _patterns(32, 1),
        _patterns(100, 2),
        _patterns(100, 3),
        train.tensors[0][:1],
        loss=_broken if broken_loss else None,
    )


def _broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError("no such luck")
