"""The reference network of the `digits` workload: a small residual CNN with batch-norm."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, arXiv:1512.03385, figure 5 left).

    Maps [n, inputs, h, w] to [n, outputs, h / stride, w / stride]. The shortcut is the identity, or a 1x1 convolution
    with batch-norm where the shape changes (option B there).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, 1, stride)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, bn=nn.BatchNorm2d(outputs)))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class DigitsResNet(nn.Module):
    """Residual network of 16 weight layers for one-channel 16x16 images of ten classes.

    Maps [n, 1, 16, 16] to logits [n, 10]. Every module is called once, so that each one is a node of its own in a
    traced graph.

    Args:
        width: channels of the first stage; the second and third have twice and four times as many.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=_convolution(1, width, 3), bn=nn.BatchNorm2d(width), relu=nn.ReLU()))
        self.blocks = nn.Sequential(
            BasicBlock(width, width),
            BasicBlock(width, width),
            BasicBlock(width, 2 * width, stride=2),
            BasicBlock(2 * width, 2 * width),
            BasicBlock(2 * width, 4 * width, stride=2),
            BasicBlock(4 * width, 4 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.blocks(self.stem(x)))))
