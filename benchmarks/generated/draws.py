"""The choices of one generated network, and tables of modules by the number of dimensions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import nn

Shape = tuple[int, ...]
Made = tuple[nn.Module, Shape]

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
WIDTHS = (16, 24, 32)
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.LeakyReLU, nn.ReLU6, nn.ELU)


@dataclass
class Draw:
    """Choices of one network.

    Attributes:
        depth: how many rules may still nest.
    """

    chance: random.Random
    depth: int = 2

    def of(self, *choices):
        return choices[self.chance.randrange(len(choices))]

    def often(self, share: float = 0.5) -> bool:
        return self.chance.randrange(100) < 100 * share

    def deeper(self) -> Draw:
        return Draw(self.chance, self.depth - 1)
