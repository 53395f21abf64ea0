"""A line reader: which digit is in each column of a strip of handwriting. Run it once to train the network."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from slimfront import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

STEPS, ROWS = 128, 8
"""Columns of a strip, which are the steps of the series, and pixels of a column."""

GAP = 10
"""The class of a column between two digits; the others are the digits'."""

PARTS = {"train": (0, 1000), "calibration": (1000, 1100), "validation": (1100, 1450), "test": (1450, 1797)}
"""The handwritten digits of scikit-learn that a split's strips are made of; other people wrote the last ones."""

CHECKPOINT = Path("strip.pt")


def strips(split: str, count: int, seed: int) -> TensorDataset:
    """Strips [count, 128, 8] and the class of every column, [count, 128]."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    part = slice(*PARTS[split])
    images, labels = torch.tensor(digits.images[part] / 16, dtype=torch.float32), torch.tensor(digits.target[part])
    rows = [_strip(images, labels, generator) for _ in range(count)]
    return TensorDataset(*map(torch.stack, zip(*rows, strict=True)))


def _strip(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One strip of digits with gaps of none to four columns between them."""
    strip, classes = torch.zeros(STEPS, ROWS), torch.full((STEPS,), GAP)
    at = 0
    while (at := at + int(torch.randint(5, (1,), generator=generator))) <= STEPS - ROWS:
        chosen = int(torch.randint(len(images), (1,), generator=generator))
        strip[at : at + ROWS], classes[at : at + ROWS] = images[chosen].T, labels[chosen]
        at += ROWS
    return strip + 0.1 * torch.randn(strip.shape, generator=generator), classes


class Reader(nn.Module):
    """Reads a strip in both directions: maps [n, steps, 8] to logits [n, steps, 11]."""

    def __init__(self, units: int = 96) -> None:
        super().__init__()
        self.gru = nn.GRU(ROWS, units, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * units, GAP + 1)

    def forward(self, strip: Tensor) -> Tensor:
        return self.head(self.gru(strip)[0])


def workload() -> Workload:
    """The trained network and its data, as study.yaml names it."""
    model = Reader()
    model.load_state_dict(torch.load(CHECKPOINT, weights_only=True))
    train, calibration = strips("train", 600, 0), strips("calibration", 64, 1)
    validation, test = strips("validation", 200, 2), strips("test", 200, 3)
    example = train[0][0][None]
    return Workload(model.eval(), train, calibration, validation, test, example, metric="token_accuracy")


def train(epochs: int = 8) -> nn.Module:
    torch.manual_seed(0)
    model, loader = Reader(), DataLoader(strips("train", 600, 0), batch_size=32, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, epochs * len(loader))
    for _ in range(epochs):
        for strip, classes in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(strip).flatten(0, 1), classes.flatten()).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


if __name__ == "__main__":
    trained, (strip, classes) = train(), strips("test", 200, 3).tensors
    torch.save(trained.state_dict(), CHECKPOINT)
    with torch.no_grad():
        right = trained(strip).argmax(2) == classes
    print(f"columns of the test split that are read right: {float(right.float().mean()):.4f}")
