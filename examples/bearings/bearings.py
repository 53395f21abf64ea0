"""Vibration of a ball bearing: healthy, or with a fault of its outer or inner ring. Run it once to train the network."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from slimfront import Workload
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SHARES = (0.8, 0.1, 0.1)
"""Healthy bearings are many and faulty ones few, as in a factory."""

SAMPLES, RATE = 512, 12_000
TURNS, OUTER, INNER = 30.0, 107.0, 162.0
"""Turns of the shaft, and rolling elements that pass a spot of the outer and of the inner ring, in a second."""

CHECKPOINT = Path("bearings.pt")


def signals(count: int, seed: int) -> TensorDataset:
    """Accelerations [count, 1, 512] and their classes: a hum, noise and, at a fault, a ringing at every passage."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.multinomial(torch.tensor(SHARES), count, replacement=True, generator=generator)
    shift = torch.rand(count, 1, generator=generator)
    time = torch.arange(SAMPLES) / RATE + shift
    hum = torch.sin(2 * torch.pi * TURNS * time)
    rate = torch.tensor([1.0, OUTER, INNER])[classes, None]  # of passages; a healthy bearing does not ring
    since = (time * rate) % 1 / rate  # seconds since the last one
    ringing = torch.exp(-900 * since) * torch.sin(2 * torch.pi * 3000 * since)
    load = torch.where(classes == 2, 0.5, 0.0)[:, None] * hum  # a spot of the inner ring turns in and out of the load
    noise = torch.randn(count, SAMPLES, generator=generator)
    return TensorDataset((hum + (classes > 0)[:, None] * (1 + load) * ringing + 0.5 * noise)[:, None], classes)


def convolution(inputs: int, outputs: int) -> nn.Module:
    layers = nn.Conv1d(inputs, outputs, 9, stride=2, padding=4, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()
    return nn.Sequential(*layers)


def make_model() -> nn.Module:
    widths = (1, 32, 64, 64, 96, 96)
    features = [convolution(*pair) for pair in pairwise(widths)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(widths[-1], len(SHARES)))


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The mean over the classes of how many of each are recognised: guessing "healthy" every time scores a third."""
    right = outputs.argmax(1) == targets
    return float(torch.stack([right[targets == each].float().mean() for each in targets.unique()]).mean())


weighted_loss = partial(nn.functional.cross_entropy, weight=1 / torch.tensor(SHARES))


def workload() -> Workload:
    """The trained network and its data, as study.yaml names it."""
    model = make_model()
    model.load_state_dict(torch.load(CHECKPOINT, weights_only=True))
    train, calibration, validation, test = signals(1500, 0), signals(200, 1), signals(1000, 2), signals(1000, 3)
    example = train[0][0][None]
    return Workload(model.eval(), train, calibration, validation, test, example, balanced_accuracy, weighted_loss)


def train(epochs: int = 6) -> nn.Module:
    torch.manual_seed(0)
    model, loader = make_model(), DataLoader(signals(1500, 0), batch_size=32, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for _ in range(epochs):
        for vibration, classes in loader:
            optimizer.zero_grad()
            weighted_loss(model(vibration), classes).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


if __name__ == "__main__":
    trained, (vibration, classes) = train(), signals(1000, 3).tensors
    torch.save(trained.state_dict(), CHECKPOINT)
    with torch.no_grad():
        print(f"balanced accuracy on the test split: {balanced_accuracy(trained(vibration), classes):.4f}")
