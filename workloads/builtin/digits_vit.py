"""The reference network of the `digits-vit` workload: a small Vision Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attention import SelfAttention


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a layer norm and with a residual connection.

    Maps [n, tokens, width] to the same shape (Dosovitskiy et al. 2021, arXiv:2010.11929, figure 1 right).
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed)[0]
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class DigitsViT(nn.Module):
    """Vision Transformer for one-channel 16x16 images of ten classes, cut into 4x4 patches; tokens are averaged at the end.

    Maps [n, 1, 16, 16] to logits [n, 10].
    """

    def __init__(self, width: int = 96, depth: int = 4, heads: int = 4, hidden: int = 384) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.fc(self.norm(self.blocks(tokens)).mean(dim=1))
