"""Small tasks that are no classification: targets are what the models say but for some noise, so that nothing is trained."""

from __future__ import annotations

import torch
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset


class Regressor(nn.Module):
    """[n, 10] -> [n]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).squeeze(-1)


class Segmenter(nn.Module):
    """[n, 1, 16, 16] -> logits of three classes at each pixel; one step down and up again, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.up, self.out = nn.Conv2d(48, 16, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        deep = self.deep(functional.max_pool2d(skip, 2)).relu()
        return self.out(self.up(torch.cat([skip, functional.interpolate(deep, scale_factor=2.0)], 1)).relu())


@torch.no_grad()
def regression(metric: str = "r2") -> Workload:
    torch.manual_seed(0)
    model = Regressor().eval()
    inputs = torch.randn(600, 10)
    outputs = model(inputs)
    return workload(model, inputs, outputs + 0.2 * outputs.std() * torch.randn(600), metric)


@torch.no_grad()
def segmentation(metric: str = "miou") -> Workload:
    torch.manual_seed(0)
    model = Segmenter().eval()
    inputs = torch.randn(200, 1, 16, 16)
    outputs = model(inputs)
    spread = outputs.std(dim=(0, 2, 3))
    model.out.bias -= outputs.mean(dim=(0, 2, 3))
    noise = 0.3 * spread[:, None, None] * torch.randn(outputs.shape)
    return workload(model, inputs, (model(inputs) + noise).argmax(1), metric)


def workload(model: nn.Module, inputs: Tensor, targets: Tensor, metric: str) -> Workload:
    part = len(inputs) // 4
    splits = [TensorDataset(x, y) for x, y in zip(inputs.split(part), targets.split(part), strict=True)]
    return Workload(model, *splits, inputs[:1], metric)
