"""The networks of the comparison, in plain torch, for 64- and 32-pixel images of ten classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, arXiv:1512.03385, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of residual blocks, each of twice the channels at half the size, mean and classifier.

    Args:
        channels: of the first stage.
        blocks: in each stage.
    """

    def __init__(self, inputs: int, channels: int, blocks: Sequence[int], stem_stride: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        stages, width = [], channels
        for stage, depth in enumerate(blocks):
            for block in range(depth):
                outputs = channels * 2**stage
                stages.append(Block(width, outputs, 2 if stage and not block else 1))
                width = outputs
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


class Attention(nn.Module):
    """Self-attention over [n, tokens, width] whose heads may be removed."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.num_heads, self.head_width)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in self.in_proj(x).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.num_heads * self.head_width))

    @torch.no_grad()
    def keep_heads(self, kept: Sequence[int]) -> None:
        """Remove every head that is not listed."""
        heads = torch.arange(self.num_heads * self.head_width).reshape(self.num_heads, self.head_width)
        columns = heads[list(kept)].flatten()
        rows = torch.cat([columns + part * self.num_heads * self.head_width for part in range(3)])
        old_in, old_out = self.in_proj, self.out_proj
        self.in_proj = nn.Linear(old_in.in_features, len(rows))
        self.in_proj.weight.copy_(old_in.weight[rows])
        self.in_proj.bias.copy_(old_in.bias[rows])
        self.out_proj = nn.Linear(len(columns), old_out.out_features)
        self.out_proj.weight.copy_(old_out.weight[:, columns])
        self.out_proj.bias.copy_(old_out.bias)
        self.num_heads = len(kept)


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each after a layer norm and around a shortcut (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """64 patches through two convolutions, encoder blocks, the mean of the tokens and a classifier."""

    def __init__(self, inputs: int, width: int, heads: int, hidden: int, depth: int, size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, width // 4, size // 16, size // 16), nn.GELU(), nn.Conv2d(width // 4, width, 2, 2)
        )
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.position
        return self.fc(self.norm(self.blocks(tokens)).mean(dim=1))
