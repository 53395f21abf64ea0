"""Modules that generated networks are made of, as users write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Function(nn.Module):
    """What forward does to channels, axis 1, or to tokens, without weights."""

    def __init__(self, name: str, parts: int = 2) -> None:
        super().__init__()
        self.name, self.parts = name, parts

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)

    def roll(self, x: Tensor) -> Tensor:
        return x.roll(1, 1)

    def flip(self, x: Tensor) -> Tensor:
        return x.flip(1)

    def every_other(self, x: Tensor) -> Tensor:
        return x[:, ::2]

    def half(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] // 2]

    def swap(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return torch.cat([other, one], 1)

    def sum_halves(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return one + other

    def repeat(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)

    def shuffle(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.parts, x.shape[1] // self.parts)).transpose(1, 2).flatten(1, 2)

    def interleave(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return torch.stack([one, other], 2).flatten(1, 2)

    def turn(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def mean_tokens(self, x: Tensor) -> Tensor:
        return x.mean(1)

    def first_token(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def flatten(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Fold(nn.Module):
    """[n, channels, positions ...] to vectors."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "mean":
            return x.flatten(2).mean(2)
        if self.name == "max":
            return x.flatten(2).amax(2)
        return (x.movedim(1, -1) if self.name == "flatten_last" else x).flatten(1)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.shortcut = inner, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + (x if self.shortcut is None else self.shortcut(x))


class Branches(nn.Module):
    def __init__(self, branches: Sequence[nn.Module], turned: bool) -> None:
        super().__init__()
        self.branches, self.turned = nn.ModuleList(branches), turned

    def forward(self, x: Tensor) -> Tensor:
        made = [branch(x) for branch in self.branches]
        return torch.cat(made[::-1] if self.turned else made, 1)


class Gated(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) * torch.sigmoid(self.other(x))


class GatedBySelf(nn.Module):
    """Half of the channels gate the others."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        if self.spelling == "glu":
            return functional.glu(x, 1)
        if self.spelling == "slices":
            return x[:, :half] * x[:, half:].sigmoid()
        one, other = x.chunk(2, 1) if self.spelling == "chunk" else x.split(half, 1)
        return one * other.sigmoid()


class PackedGate(nn.Module):
    """SwiGLU whose two halves one layer makes."""

    def __init__(self, width: int, hidden: int, swaps: bool) -> None:
        super().__init__()
        self.up, self.down, self.swaps = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width), swaps

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.up(x).chunk(2, -1)
        return self.down(one * functional.silu(other) if self.swaps else functional.silu(one) * other)


class SharedUse(nn.Module):
    """A layer that runs twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        kind = type(layer)
        self.one = layer
        self.other = kind(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)  # pyright: ignore
        self.other.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x).relu())


class UsedInForward(nn.Module):
    """A layer whose weight forward also reads by itself."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        compute = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[x.ndim - 2]
        again = compute(self.layer(x).relu(), self.layer.weight, padding=self.layer.padding)
        return again + x


class PixelStep(nn.Module):
    def __init__(self, factor: int, up: bool) -> None:
        super().__init__()
        self.step = nn.PixelShuffle(factor) if up else nn.PixelUnshuffle(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


class Scale(nn.Module):
    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, *[1] * rank))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Excite(nn.Module):
    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.down, self.up = kind(channels, 16, 1), kind(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return x * self.up(self.down(mean).relu()).sigmoid()


class NormOfChannels(nn.LayerNorm):
    """A layer norm over the channels, axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class RootMeanSquare(nn.Module):
    """RMSNorm as Llama's authors write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, spelling: str) -> None:
        super().__init__()
        self.heads, self.spelling = heads, spelling
        if spelling == "module":
            self.whole = nn.MultiheadAttention(width, heads, batch_first=True)
        elif spelling == "fused":
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        else:
            self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
            self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "module":
            return self.whole(x, x, x, need_weights=False)[0]
        n, tokens, width = x.shape
        if self.spelling == "fused":
            parts = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            made = functional.scaled_dot_product_attention(*parts.unbind(0))
            return self.out(made.transpose(1, 2).reshape(n, tokens, width))
        q, k, v = (layer(x).view(n, tokens, self.heads, -1) for layer in (self.q, self.k, self.v))
        if self.spelling == "einsum":
            scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[-1] ** -0.5
            return self.out(torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2))
        made = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(made.transpose(1, 2).flatten(2))


class GroupedQuery(nn.Module):
    """Grouped-query attention: several heads of queries share one of keys and values."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.each = heads, shared, width // heads
        self.q, self.k, self.v = (nn.Linear(width, n * self.each) for n in (heads, shared, shared))
        self.out = nn.Linear(heads * self.each, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q = self.q(x).view(n, tokens, self.heads, self.each).transpose(1, 2)
        k, v = (layer(x).view(n, tokens, self.shared, self.each).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (part.repeat_interleave(self.heads // self.shared, 1) for part in (k, v))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    """The outputs of a recurrent layer at every step."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Unrolled(nn.Module):
    """A simple recurrent network of linear layers, step by step."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.read, self.carry = nn.Linear(width, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        state, made = torch.zeros_like(self.read(x[:, 0])), []
        for step in x.unbind(1):
            state = torch.tanh(self.read(step) + self.carry(state))
            made.append(state)
        return torch.stack(made, 1)
